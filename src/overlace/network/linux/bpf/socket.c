// SPDX-License-Identifier: Apache-2.0
/* Services at the socket level: a container's connect() to a service's address is given a backend's, once, so that no packet
 * of the connection is translated and the container's kernel sees to its ports itself. The decision is the packet level's
 * (pick.h); what these programs leave alone, the packet level balances:
 *   what is not TCP         a datagram socket may outlive its backend, and must come to another one
 *   sandboxes not in `reaches`, sub-namespaces of containers, subnets that two interfaces lead to
 *   sockets bound to another address or to an interface; or to a port, which two connections to one backend may not share
 *   a backend that is the client itself, in another network, or not reached by the same interface
 *   a backend that sees its clients under another address
 *   services that leave their own address to packets (FRONTEND_PRESERVES)
 *   services without a backend, ports that a service has not: refused by packets
 * The programs stand at the root of cgroup v2, beside those of other hosts' daemons: a network namespace is known by its
 * cookie, and one that is unknown is another's.
 *   connect4, connect6      connect(2); connect_mapped: of IPv4 by an IPv6 socket
 *   peer4, peer6            getpeername(2) answers the service's address; peer_mapped likewise */
#include "pick.h"

char LICENSE[] SEC("license") = "GPL";

#define STREAM 1 /* SOCK_STREAM */

LOOKUP struct reach *reach_of(__u32 sandbox, const addr_t *to)
{
	struct reach_key key = { .prefix = 32 + ADDR_BITS, .sandbox = sandbox, .to = *to };

	return bpf_map_lookup_elem(&reaches, &key);
}

/* Whether the socket has no name of its own but the address the service's network gave its container. */
INLINE int is_free(struct bpf_sock *sk, const addr_t *own)
{
#ifdef OVERLACE_IPV6
	addr_t bound = { .w = { sk->src_ip6[0], sk->src_ip6[1], sk->src_ip6[2], sk->src_ip6[3] } };
#else
	addr_t bound = sk->src_ip4;
#endif
	return !sk->bound_dev_if && !sk->src_port && (same(bound, numbered(0)) || same(bound, *own));
}

/* Give the socket a backend of the service at `to`. 1: it has one, and `to` and `port` are the backend's. */
INLINE int choose(struct bpf_sock_addr *ctx, addr_t *to, __be16 *port)
{
	__u32 sandbox = (__u32)bpf_get_netns_cookie(ctx);
	struct bpf_sock *sk = ctx->sk;
	struct reach *mine, *there;
	struct frontend *fe;
	struct endpoint *e;
	struct choice *c;
	struct flow f = {};
	__u32 vni;

	if (ctx->protocol != PROTO_TCP || ctx->type != STREAM || !sk)
		return 0;
	mine = reach_of(sandbox ? sandbox : 1, to); /* netns.py's number */
	if (!mine || !mine->vni)
		return 0;
	bpf_sk_storage_delete(&choices, sk); /* of an earlier connect() */
	vni = mine->vni;
	e = endpoint_of(vni, to);
	if (!e || e->kind != K_VIP || !is_free(sk, &mine->addr))
		return 0;
	fe = frontend_of(vni, to, *port, PROTO_TCP);
	if (!fe || (fe->flags & FRONTEND_PRESERVES) || pick(fe, vni, to, &mine->addr, PROTO_TCP, *port, &f))
		return 0;
	there = reach_of(sandbox ? sandbox : 1, &f.daddr);
	if (is_none(f.saddr) && f.vni == vni && !same(f.daddr, mine->addr) && there && there->vni == vni && same(there->addr, mine->addr)) {
		c = bpf_sk_storage_get(&choices, sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
		if (c) {
			c->vni = vni;
			c->front = *to;
			c->back = f.daddr;
			c->front_port = *port;
			c->back_port = f.dport;
			c->list = f.list;
			*to = f.daddr;
			*port = f.dport;
			return 1;
		}
	}
	give_back(fe);
	return 0;
}

/* The service the socket asked for, when `back` and `port` are what it was given. */
INLINE struct choice *asked_for(struct bpf_sock_addr *ctx, const addr_t *back, __be16 port)
{
	struct bpf_sock *sk = ctx->sk;
	struct choice *c = sk ? bpf_sk_storage_get(&choices, sk, 0, 0) : 0;

	return c && same(c->back, *back) && c->back_port == port ? c : 0;
}

#ifdef OVERLACE_IPV6
INLINE addr_t six_of(struct bpf_sock_addr *ctx)
{
	addr_t a = { .w = { ctx->user_ip6[0], ctx->user_ip6[1], ctx->user_ip6[2], ctx->user_ip6[3] } };

	return a;
}

INLINE void set_six(struct bpf_sock_addr *ctx, const addr_t *a)
{
	ctx->user_ip6[0] = a->w[0];
	ctx->user_ip6[1] = a->w[1];
	ctx->user_ip6[2] = a->w[2];
	ctx->user_ip6[3] = a->w[3];
}

SEC("cgroup/connect6")
int connect6(struct bpf_sock_addr *ctx)
{
	addr_t to = six_of(ctx);
	__be16 port = ctx->user_port;

	if (choose(ctx, &to, &port)) {
		set_six(ctx, &to);
		ctx->user_port = port;
	}
	return 1;
}

SEC("cgroup/getpeername6")
int peer6(struct bpf_sock_addr *ctx)
{
	addr_t back = six_of(ctx);
	struct choice *c = asked_for(ctx, &back, ctx->user_port);

	if (c) {
		set_six(ctx, &c->front);
		ctx->user_port = c->front_port;
	}
	return 1;
}
#else
/* RFC 4291 section 2.5.5.2 */
INLINE int is_mapped(struct bpf_sock_addr *ctx)
{
	return !ctx->user_ip6[0] && !ctx->user_ip6[1] && ctx->user_ip6[2] == bpf_htonl(0xffff);
}

SEC("cgroup/connect4")
int connect4(struct bpf_sock_addr *ctx)
{
	addr_t to = ctx->user_ip4;
	__be16 port = ctx->user_port;

	if (choose(ctx, &to, &port)) {
		ctx->user_ip4 = to;
		ctx->user_port = port;
	}
	return 1;
}

SEC("cgroup/connect6")
int connect_mapped(struct bpf_sock_addr *ctx)
{
	addr_t to = ctx->user_ip6[3];
	__be16 port = ctx->user_port;

	if (is_mapped(ctx) && choose(ctx, &to, &port)) {
		ctx->user_ip6[3] = to;
		ctx->user_port = port;
	}
	return 1;
}

SEC("cgroup/getpeername4")
int peer4(struct bpf_sock_addr *ctx)
{
	addr_t back = ctx->user_ip4;
	struct choice *c = asked_for(ctx, &back, ctx->user_port);

	if (c) {
		ctx->user_ip4 = c->front;
		ctx->user_port = c->front_port;
	}
	return 1;
}

SEC("cgroup/getpeername6")
int peer_mapped(struct bpf_sock_addr *ctx)
{
	addr_t back = ctx->user_ip6[3];
	struct choice *c = is_mapped(ctx) ? asked_for(ctx, &back, ctx->user_port) : 0;

	if (c) {
		ctx->user_ip6[3] = c->front;
		ctx->user_port = c->front_port;
	}
	return 1;
}
#endif
