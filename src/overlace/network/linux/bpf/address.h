/* SPDX-License-Identifier: Apache-2.0 */
/* Addresses: inside the overlay (addr_t), and of hosts on the underlay (host_t). The programs are compiled for either
 * family inside, overlace.c for IPv4 and overlace6.c for IPv6, each with tables of its own; and both once more for hosts that
 * reach each other over IPv6, overlace_over6.c and overlace6_over6.c. A host loads one pair. */
#pragma once
#include <linux/types.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>

#define INLINE static __always_inline
/* A global function: the verifier looks at it once, not once per call. */
#define NOINLINE __attribute__((noinline))
#define ETH_IPV4 0x0800
#define ETH_IPV6 0x86dd

typedef struct {
	__u32 w[4];
} six_t;

INLINE int same_six(six_t a, six_t b)
{
	return a.w[0] == b.w[0] && a.w[1] == b.w[1] && a.w[2] == b.w[2] && a.w[3] == b.w[3];
}

#ifdef OVERLACE_OVER_IPV6
#define IS_OVER_IPV6 1

typedef six_t host_t;

INLINE int same_host(host_t a, host_t b)
{
	return same_six(a, b);
}

/* The number in place of a host. */
INLINE __u32 number_of(host_t host)
{
	return host.w[0];
}

#else
#define IS_OVER_IPV6 0

typedef __be32 host_t;

INLINE int same_host(host_t a, host_t b)
{
	return a == b;
}

INLINE __u32 number_of(host_t host)
{
	return host;
}

#endif

#ifdef OVERLACE_IPV6
#define IS_IPV6 1

typedef six_t addr_t;

#define ADDR_BITS 128
#define IP_HEAD 40
#define IPV6_LEAST 1280
/* Makes a key on the stack and looks it up. A function of its own: the stack of its callers stays small. */
#define LOOKUP static __attribute__((noinline, unused))
#define ETH_INNER ETH_IPV6
#define PROTO_ICMP 58
#define ECHO_REQUEST 128
#define ECHO_REPLY 129

/* Tables whose rows name addresses. The others, by number or by host, are the same for both. */
#define networks networks6
#define endpoints endpoints6
#define ports ports6
#define subnets subnets6
#define routes routes6
#define exceptions exceptions6
#define reaches reaches6
#define choices choices6
#define floods floods6
#define frontends frontends6
#define backends backends6
#define access_lists access_lists6
#define address_sets address_sets6
#define members members6
#define affinities affinities6
#define allowed allowed6
#define flows flows6
#define unified_flows unified_flows6
#define fragments fragments6
#define traces traces6
#define own_addresses own_addresses6

/* The number in place of an address. */
INLINE addr_t numbered(__u32 n)
{
	addr_t a = { .w = { 0, 0, 0, n } };

	return a;
}

INLINE __u32 word_of(const addr_t *a, const int i)
{
	return bpf_ntohl(a->w[i]);
}

/* Some of the address, for a hash. */
INLINE __u32 digest(addr_t a)
{
	return a.w[0] ^ a.w[1] ^ a.w[2] ^ a.w[3];
}

INLINE int same(addr_t a, addr_t b)
{
	return same_six(a, b);
}

INLINE int is_none(addr_t a)
{
	return !(a.w[0] | a.w[1] | a.w[2] | a.w[3]);
}

INLINE int is_loopback(addr_t a)
{
	return same(a, numbered(bpf_htonl(1)));
}

INLINE int is_multicast(addr_t a)
{
	return (a.w[0] & bpf_htonl(0xff000000)) == bpf_htonl(0xff000000);
}

INLINE int is_link_local(addr_t a)
{
	return (a.w[0] & bpf_htonl(0xffc00000)) == bpf_htonl(0xfe800000);
}

/* A route's hop that is no endpoint but the host's own stack. */
INLINE int is_host_hop(const addr_t *a)
{
	return (a->w[0] & a->w[1] & a->w[2] & a->w[3]) == 0xffffffff;
}

INLINE int same_masked(const addr_t *a, const addr_t *b, const addr_t *mask)
{
	return !(((a->w[0] ^ b->w[0]) & mask->w[0]) | ((a->w[1] ^ b->w[1]) & mask->w[1]) |
		 ((a->w[2] ^ b->w[2]) & mask->w[2]) | ((a->w[3] ^ b->w[3]) & mask->w[3]));
}

#else
#define IS_IPV6 0

typedef __be32 addr_t;

#define ADDR_BITS 32
#define IP_HEAD 20
#define LOOKUP INLINE
#define ETH_INNER ETH_IPV4
#define PROTO_ICMP 1
#define ECHO_REQUEST 8
#define ECHO_REPLY 0

INLINE addr_t numbered(__u32 n)
{
	return n;
}

INLINE __u32 word_of(const addr_t *a, const int i)
{
	return bpf_ntohl(*a);
}

INLINE __u32 digest(addr_t a)
{
	return a;
}

INLINE int same(addr_t a, addr_t b)
{
	return a == b;
}

INLINE int is_none(addr_t a)
{
	return !a;
}

INLINE int is_host_hop(const addr_t *a)
{
	return *a == 0xffffffff;
}

INLINE int same_masked(const addr_t *a, const addr_t *b, const addr_t *mask)
{
	return !((*a ^ *b) & *mask);
}

#endif
