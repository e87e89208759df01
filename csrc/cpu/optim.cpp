#include "ops/slots.h"

namespace fastnn::cpu::FASTNN_ISA {

void fill_optim(Slots&) {}

}  // namespace fastnn::cpu::FASTNN_ISA
