// A repacked matrix's life: made empty, filled group by group, freed.
#pragma once

#include "layout.h"

namespace layerlift {

Matrix* new_matrix(int gguf_id, int64_t rows, int64_t columns);  // nullptr: no kernel for it; throws std::bad_alloc
void delete_matrix(Matrix*);
int64_t row_nbytes(const Matrix&);  // of GGUF
void pack_groups(const Matrix&, const uint8_t* raw, int64_t begin, int64_t end);

}  // namespace layerlift
