#include "ops/slots.h"

namespace fastnn::cpu::FASTNN_ISA {

void fill_reduce(Slots&) {}

}  // namespace fastnn::cpu::FASTNN_ISA
