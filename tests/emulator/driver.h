// Takes launches from standard input, in the protocol of tests/native_driver.py: a name, integers (grid x and y, threads,
// bytes of shared memory, seed, then the kernel's), numbers, arrays, each array in memory of exactly its size. Started with a
// file, an address and a size, it maps the file there; arrays are then addresses behind the other integers, and their number.

#include <fcntl.h>
#include <sys/mman.h>

static std::vector<int64_t> integers;
static std::vector<double> numbers;
static std::vector<void *> arrays;

static void (*find_kernel(const char *name))();  // in the text, made of its kernels' parameters

static void take(void *to, size_t size) {
  if (size && fread(to, 1, size, stdin) != size) exit(3);
}

static void map_memory(const char *path, const char *base, const char *size) {
  void *wanted = (void *)strtoull(base, nullptr, 10);
  int file = open(path, O_RDWR);
  if (mmap(wanted, strtoull(size, nullptr, 10), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED_NOREPLACE, file, 0) == wanted) return;
  fprintf(stderr, "%s cannot be mapped at %s\n", path, base);
  exit(4);
}

int main(int count, char **arguments) {
  bool mapped = count > 3;
  if (mapped) map_memory(arguments[1], arguments[2], arguments[3]);
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
    if (mapped) {
      int64_t *end = integers.data() + integers.size() - 1;
      for (int64_t *at = end - *end; at < end; at++) arrays.push_back((void *)*at);
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
