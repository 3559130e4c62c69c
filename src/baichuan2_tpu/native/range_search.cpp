#include "range_search.h"

namespace baichuan2 {

void bind_range_search(nanobind::module_&) {}

}  // namespace baichuan2
