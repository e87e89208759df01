#include "ops/slots.h"

namespace fastnn::cpu::FASTNN_ISA {

void fill_pool(Slots&) {}

}  // namespace fastnn::cpu::FASTNN_ISA
