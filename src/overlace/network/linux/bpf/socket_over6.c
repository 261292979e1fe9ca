// SPDX-License-Identifier: Apache-2.0
/* The same for hosts that reach each other over IPv6. */
#define OVERLACE_OVER_IPV6
#include "socket.c"
