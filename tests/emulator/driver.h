// Takes launches from standard input, in the protocol of tests/native_driver.py: a name, integers (grid x and y, threads,
// bytes of shared memory, seed, then the kernel's), numbers, arrays, each array in memory of exactly its size.

static std::vector<int64_t> integers;
static std::vector<double> numbers;
static std::vector<void *> arrays;

// KERNELS

static void take(void *to, size_t size) {
  if (size && fread(to, 1, size, stdin) != size) exit(3);
}

int main() {
  char name[17] = {0};
  while (fread(name, 1, 16, stdin) == 16) {
    u32 counts[3];
    take(counts, sizeof counts);
    integers.resize(counts[0]);
    numbers.resize(counts[1]);
    take(integers.data(), 8 * counts[0]);
    take(numbers.data(), 8 * counts[1]);
    arrays.clear();
    std::vector<size_t> sizes;
    std::vector<bool> wanted;
    for (u32 i = 0; i < counts[2]; i++) {
      int64_t size;
      u8 want;
      take(&size, 8);
      take(&want, 1);
      arrays.push_back(size < 0 ? nullptr : malloc(size));
      take(arrays.back(), size < 0 ? 0 : size);
      sizes.push_back(size < 0 ? 0 : size);
      wanted.push_back(want);
    }
    int64_t result = -1;
    if (auto kernel = find_kernel(name)) {
      grid::run(integers[0], integers[1], integers[2], integers[3], integers[4], kernel);
      result = 0;
    }
    fwrite(&result, 8, 1, stdout);
    for (u32 i = 0; i < counts[2]; i++) {
      if (wanted[i]) fwrite(arrays[i], 1, sizes[i], stdout);
      free(arrays[i]);
    }
    fflush(stdout);
  }
}
