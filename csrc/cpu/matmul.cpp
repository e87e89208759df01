#include "ops/slots.h"

namespace fastnn::cpu::FASTNN_ISA {

void fill_matmul(Slots&) {}

}  // namespace fastnn::cpu::FASTNN_ISA
