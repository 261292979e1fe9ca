// SPDX-License-Identifier: Apache-2.0
/* The same for IPv6 inside the overlay. */
#define OVERLACE_IPV6
#include "socket.c"
