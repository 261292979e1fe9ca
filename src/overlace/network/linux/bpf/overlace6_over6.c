// SPDX-License-Identifier: Apache-2.0
/* The same data path for IPv6 inside the overlay, between hosts that reach each other over IPv6. */
#define OVERLACE_OVER_IPV6
#define OVERLACE_IPV6
#include "overlace.c"
