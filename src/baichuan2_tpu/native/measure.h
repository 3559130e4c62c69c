// Measures the most this machine can do: the ceilings that a benchmark is compared with.
#pragma once

#include <string>

namespace baichuan2 {

// Bytes per second that `threads` threads together read from memory; the best of several passes over 1 GiB.
double measure_read_bandwidth(int threads);

// Multiplications per second of the kernels' inner step on registers, for weights of `bits` bits, all threads
// together; the best of several.
double measure_multiply_peak(int threads, int bits, const std::string& kernels);

}  // namespace baichuan2
