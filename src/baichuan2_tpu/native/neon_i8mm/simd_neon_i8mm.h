// Eight floats as in NEON, under a name of this set: what the compiler makes of it stays apart.
#pragma once

#include "neon/simd_neon.h"

namespace baichuan2 {

struct NeonI8mmSimd : NeonSimd {};

}  // namespace baichuan2
