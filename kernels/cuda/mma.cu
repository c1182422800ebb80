// Product of 64 rows of x with 64 rows of w on tensor cores: result[r][c] = x_r . w_c, sums in float32.
//
// Two warps; each has 32 rows and all 64 columns in 2 x 8 fragments of mma.m16n8k16 (sm_75: two
// mma.m16n8k8 in its place). Operands pass through shared memory 32 columns at a time; from sm_80 on
// cp.async brings the next 32 while these are multiplied. The kernel around it is Numba's.
//
// The same source compiles for the host, where one call does the work of all 64 threads in turn and
// the multiplication gathers each fragment's elements by the layout that PTX documents: so the
// layout, which is what can be wrong here, is tested without a GPU.

#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
#define ON_DEVICE __device__
constexpr int HERE = 1;  // threads that one call does the work of
ON_DEVICE inline int self(int) { return threadIdx.x; }
ON_DEVICE inline void meet() { __syncthreads(); }
#else
#define ON_DEVICE
constexpr int HERE = 64;
inline int self(int i) { return i; }
inline void meet() {}
#endif

constexpr int THREADS = 64, SIDE = 64, STRIDE = 68, STEP = 32;
constexpr int ROW = STEP + 8;  // the pad puts the 8 rows that a warp reads together into different banks
constexpr int CHUNK = 8;       // elements in 16 bytes
constexpr int ROWS_OF_WARP = 2, COLUMNS_OF_WARP = 8;  // fragments

struct Fp16 {};
struct Bf16 {};
using Element = unsigned short;
using Sums = float[ROWS_OF_WARP][COLUMNS_OF_WARP][4];

struct alignas(16) Operand {
    Element rows[SIDE][ROW];
};

struct alignas(16) Chunk {
    unsigned words[4];
};

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
ON_DEVICE inline void copy(Element* to, const Element* from, bool there) {
    unsigned target = static_cast<unsigned>(__cvta_generic_to_shared(to));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(target), "l"(from), "r"(there ? 16 : 0) : "memory");
}
ON_DEVICE inline void end_of_stage() { asm volatile("cp.async.commit_group;" ::: "memory"); }
ON_DEVICE inline void await_all_but_last() { asm volatile("cp.async.wait_group 1;" ::: "memory"); }
#else
ON_DEVICE inline void copy(Element* to, const Element* from, bool there) {
    *reinterpret_cast<Chunk*>(to) = there ? *reinterpret_cast<const Chunk*>(from) : Chunk{};
}
ON_DEVICE inline void end_of_stage() {}
ON_DEVICE inline void await_all_but_last() {}
#endif

// Columns [base, base + STEP) of the rows of `source` that begin at `at`; a negative place is a row of zeros.
ON_DEVICE inline void load(Operand& to, const Element* source, const long long* at, int base, int k) {
    for (int i = 0; i < HERE; ++i) {
        for (int n = self(i); n < SIDE * STEP / CHUNK; n += THREADS) {
            int row = n / (STEP / CHUNK), column = n % (STEP / CHUNK) * CHUNK;
            bool there = at[row] >= 0 && base + column < k;
            copy(&to.rows[row][column], source + (there ? at[row] + base + column : 0), there);
        }
    }
}

ON_DEVICE inline unsigned pair(const Operand& from, int row, int column) {
    return *reinterpret_cast<const unsigned*>(&from.rows[row][column]);
}

#if defined(__CUDA_ARCH__)
#if __CUDA_ARCH__ >= 800
#define MULTIPLY(TYPE, NAME)                                                                                       \
    ON_DEVICE inline void multiply(TYPE, Sums* sums, int m, int n, const unsigned (*a)[4], const unsigned (*b)[2]) { \
        float* c = sums[0][m][n];                                                                                  \
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." NAME "." NAME ".f32 "                                 \
                     "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                              \
                     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                              \
                     : "r"(a[0][0]), "r"(a[0][1]), "r"(a[0][2]), "r"(a[0][3]), "r"(b[0][0]), "r"(b[0][1]));          \
    }
MULTIPLY(Fp16, "f16")
MULTIPLY(Bf16, "bf16")
#else
ON_DEVICE inline void multiply(Fp16, Sums* sums, int m, int n, const unsigned (*a)[4], const unsigned (*b)[2]) {
    float* c = sums[0][m][n];
    for (int half = 0; half < 2; ++half) {
        asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
                     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                     : "r"(a[0][2 * half]), "r"(a[0][2 * half + 1]), "r"(b[0][half]));
    }
}
#endif
#else
inline float widen(Bf16, Element bits) {
    unsigned word = static_cast<unsigned>(bits) << 16;
    return __builtin_bit_cast(float, word);
}
inline float widen(Fp16, Element bits) { return static_cast<float>(__builtin_bit_cast(_Float16, bits)); }

// c += a b, every element fetched from the lane and register that PTX ISA 9.7.14 ("Matrix Fragments for
// mma.m16n8k16 with floating point type") says holds it; lower halves of a register hold even columns.
template <class Type>
inline void multiply(Type type, Sums* sums, int m, int n, const unsigned (*a)[4], const unsigned (*b)[2]) {
    for (int thread = 0; thread < HERE; ++thread) {
        int warp = thread / 32 * 32, lane = thread % 32;
        for (int i = 0; i < 4; ++i) {
            int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
            for (int k = 0; k < 16; ++k) {
                unsigned left = a[warp + row % 8 * 4 + k % 8 / 2][row / 8 + k / 8 * 2];
                unsigned right = b[warp + column * 4 + k % 8 / 2][k / 8];
                int shift = k % 2 * 16;
                sums[thread][m][n][i] += widen(type, static_cast<Element>(left >> shift)) * widen(type, static_cast<Element>(right >> shift));
            }
        }
    }
}
#endif

// Sums += the product of what is in shared memory.
template <class Type>
ON_DEVICE inline void accumulate(Type type, Sums* sums, const Operand& x, const Operand& w) {
#pragma unroll 1
    for (int k = 0; k < STEP; k += 16) {
        unsigned a[ROWS_OF_WARP][HERE][4], b[HERE][2];
        for (int m = 0; m < ROWS_OF_WARP; ++m) {
            for (int i = 0; i < HERE; ++i) {
                int row = self(i) / 32 * 32 + m * 16 + self(i) % 32 / 4, column = k + self(i) % 4 * 2;
                a[m][i][0] = pair(x, row, column), a[m][i][1] = pair(x, row + 8, column);
                a[m][i][2] = pair(x, row, column + 8), a[m][i][3] = pair(x, row + 8, column + 8);
            }
        }
#pragma unroll
        for (int n = 0; n < COLUMNS_OF_WARP; ++n) {
            for (int i = 0; i < HERE; ++i) {
                int row = n * 8 + self(i) % 32 / 4, column = k + self(i) % 4 * 2;
                b[i][0] = pair(w, row, column), b[i][1] = pair(w, row, column + 8);
            }
            for (int m = 0; m < ROWS_OF_WARP; ++m) multiply(type, sums, m, n, a[m], b);
        }
    }
}

template <class Type>
ON_DEVICE inline void product(
    Type type, const Element* x, const long long* x_at, const Element* w, const long long* w_at, int k, float* result) {
    auto stages = reinterpret_cast<Operand(*)[2]>(result);  // [2][2], gone before the result is written
    Sums sums[HERE] = {};
    int steps = (k + STEP - 1) / STEP;
    meet();
    load(stages[0][0], x, x_at, 0, k), load(stages[0][1], w, w_at, 0, k);
    end_of_stage();
    for (int step = 0; step < steps; ++step) {
        Operand(&next)[2] = stages[(step + 1) % 2];
        if (step + 1 < steps) load(next[0], x, x_at, (step + 1) * STEP, k), load(next[1], w, w_at, (step + 1) * STEP, k);
        end_of_stage();
        await_all_but_last();
        meet();
        accumulate(type, sums, stages[step % 2][0], stages[step % 2][1]);
        meet();
    }
    for (int i = 0; i < HERE; ++i) {
        int row = self(i) / 32 * 32 + self(i) % 32 / 4, column = self(i) % 4 * 2;
#pragma unroll
        for (int m = 0; m < ROWS_OF_WARP; ++m)
#pragma unroll
            for (int n = 0; n < COLUMNS_OF_WARP; ++n)
                for (int j = 0; j < 4; ++j)
                    result[(row + m * 16 + j / 2 * 8) * STRIDE + column + n * 8 + j % 2] = sums[i][m][n][j];
    }
    meet();
}

// Numba's C ABI: a pointer for the result, then the arguments; returns 0. Rows of x and w and `result`, which
// has room for the stages (20 KiB), begin at multiples of 16 bytes.
#define FOR_NUMBA(NAME, TYPE)                                                                                              \
    extern "C" ON_DEVICE int NAME(                                                                                         \
        int*, const Element* x, const long long* x_at, const Element* w, const long long* w_at, int k, float* result) {    \
        product(TYPE{}, x, x_at, w, w_at, k, result);                                                                      \
        return 0;                                                                                                          \
    }
FOR_NUMBA(product_fp16, Fp16)
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
FOR_NUMBA(product_bf16, Bf16)
#endif
