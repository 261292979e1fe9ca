/* SPDX-License-Identifier: Apache-2.0 */
/* Connections of containers whose backend the socket level chose (socket.c): their packets name the backend. What the
 * packet level still does for them: it knows which service was asked for, refuses what goes to a backend that is gone,
 * and takes over a connection that has not begun when its backend is not to have it any more. */
#pragma once
#include "onward.h"

/* What the packet's socket was given, if the packet goes there. */
NOINLINE int choice_of(struct __sk_buff *ctx, const struct pkt *p, __u32 vni, struct choice *out)
{
	struct bpf_sock *sk = ctx->sk;
	struct choice *c;

	if (!p || !out || !sk)
		return -1;
	sk = bpf_sk_fullsock(sk);
	if (!sk)
		return -1;
	c = bpf_sk_storage_get(&choices, sk, 0, 0);
	if (!c || c->vni != vni || !same(c->back, p->daddr) || c->back_port != p->dport)
		return -1;
	*out = *c;
	return 0;
}

/* Answers under this connection's name were to be translated for an earlier one, which is over. */
LOOKUP void forget_ended(const struct pkt *p, __u32 vni)
{
	struct flow_key key = {
		.scope = vni, .saddr = p->daddr, .daddr = p->saddr, .sport = p->dport, .dport = p->sport, .proto = p->proto,
	};
	struct flow *f = bpf_map_lookup_elem(&flows, &key);

	if (f && f->kind == F_REPLY && ended(f, p->proto) != GOES_ON)
		bpf_map_delete_elem(&flows, &key);
}

/* Remember which service the connection asked for. */
NOINLINE int note_choice(const struct pkt *p, const struct choice *c)
{
	struct flow f = {};

	if (!p || !c)
		return 0;

	struct flow_key key = {
		.scope = c->vni, .saddr = p->saddr, .daddr = p->daddr, .sport = p->sport, .dport = p->dport, .proto = p->proto,
	};

	f.saddr = p->saddr;
	f.sport = p->sport;
	f.daddr = c->front;
	f.dport = c->front_port;
	f.vni = f.peer_vni = c->vni;
	f.list = c->list;
	f.seen = now();
	f.kind = F_CHOSEN;
	return bpf_map_update_elem(&flows, &key, &f, BPF_ANY);
}

/* What is remembered by the packet's names is not this connection's, or not any more. */
LOOKUP void forget_choice(const struct pkt *p, __u32 vni)
{
	struct flow_key key = {
		.scope = vni, .saddr = p->saddr, .daddr = p->daddr, .sport = p->sport, .dport = p->dport, .proto = p->proto,
	};

	bpf_map_delete_elem(&flows, &key);
}

ROOM_FOR(choice, c);

enum { C_NONE, C_REFUSE, C_BALANCE };

/* A container's TCP packet to an endpoint of its network, or, not `alive`, to none. C_NONE: it goes as any packet does.
 * C_BALANCE: to a backend, `q` says whose. */
NOINLINE int by_choice(struct __sk_buff *ctx, const struct pkt *p, const struct port *port, __u32 alive, struct question *q)
{
	struct frontend *fe;
	struct flow *f;
	ROOM(choice, c);

	if (!p || !port || !q)
		return C_NONE;
	f = flow_of(port->vni, p);
	if (!begins_connection(p)) {
		if (f && f->kind == F_CHOSEN && !alive)
			return C_REFUSE;
		if (!f || f->kind != F_FORWARD)
			return C_NONE;
		c->front = p->daddr; /* it was taken over: nothing is chosen any more */
		goto balance;
	}
	forget_ended(p, port->vni);
	if (choice_of(ctx, p, port->vni, c)) {
		if (f && (f->kind == F_CHOSEN || f->kind == F_FORWARD)) /* of an earlier connection */
			forget_choice(p, port->vni);
		return C_NONE;
	}
	fe = frontend_of(c->vni, &c->front, c->front_port, p->proto);
	if (fe && alive && fe->list == c->list) {
		note_choice(p, c);
		return C_NONE;
	}
	if (!fe || (port->flags & (PORT_FILTERED | PORT_LETS_OUT)) == PORT_FILTERED) /* rules would be asked about another name */
		return C_REFUSE;
	if (f && f->kind == F_CHOSEN) /* from now on rules are asked about the backend, and remember their answer */
		forget_choice(p, port->vni);
balance:
	q->scope = q->client_vni = port->vni;
	q->source = p->saddr;
	q->front = c->front;
	q->port = c->front_port;
	return C_BALANCE;
}
