#include "ops/slots.h"

namespace fastnn::cpu::FASTNN_ISA {

void fill_elementwise(Slots&) {}

}  // namespace fastnn::cpu::FASTNN_ISA
