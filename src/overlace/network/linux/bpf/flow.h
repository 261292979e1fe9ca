/* SPDX-License-Identifier: Apache-2.0 */
/* Connections: which backend a frontend's connection got, how its replies are translated, and the way back of
 * connections that entered through another host. */
#pragma once
#include "pick.h"
#include "unified.h"

enum { B_GO, B_PASS, B_REFUSE, B_DROP };

struct question {
	__u32 scope; /* network of the frontend, 0: published port */
	__u32 client_vni; /* OUT_ENDPOINT: where replies are delivered */
	addr_t front; /* the frontend's address; the packet may carry another name of it (127.0.0.1) */
	addr_t source; /* address the backend shall see, unless its row names another */
	__u32 out; /* where replies go */
	__u32 ifindex; /* OUT_UNDERLAY: where the client is */
	__be16 port; /* the frontend's; 0: the packet's */
};

ROOM_FOR(question, q);
ROOM_FOR(flow, f);
ROOM_FOR(flow, answers);
ROOM_FOR(flow_key, key);
QUICK_ROOM_FOR(flow_key, here);
QUICK_ROOM_FOR(flow_key, other);
QUICK_ROOM_FOR(flow, via);

/* The remembered connection of a packet; an ICMP error belongs to the connection it is about. */
LOOKUP struct flow *flow_of(__u32 scope, const struct pkt *p)
{
	struct flow_key key = { .scope = scope, .sport = p->sport, .dport = p->dport };

	key.saddr = p->error ? p->error_saddr : p->saddr;
	key.daddr = p->error ? p->error_daddr : p->daddr;
	key.proto = p->error ? p->error_proto : p->proto;
	return bpf_map_lookup_elem(&flows, &key);
}

/* What went from backend to client under these names so far went untranslated. */
LOOKUP void forget_reply(const struct pkt *p, __u32 vni, const struct flow *f, const addr_t *answers_as)
{
	struct endpoint *e = endpoint_of(vni, &f->daddr);

	if (e)
		forget(e->kind == K_LOCAL ? e->ifindex : AT_TUNNEL | vni, *answers_as, f->saddr, f->dport, f->sport,
		       p->proto);
}

/* The connection whose answers `reply` translates: to a VIP, or to a host's address, which a container may ask, too. */
LOOKUP struct flow *answered_by(const struct flow *reply, __u8 proto)
{
	struct flow_key key = {
		.saddr = reply->daddr, .daddr = reply->saddr, .sport = reply->dport, .dport = reply->sport, .proto = proto,
	};
	struct flow *f;

	if (reply->out == OUT_ENDPOINT)
		key.scope = reply->vni;
	f = bpf_map_lookup_elem(&flows, &key);
	if (!f && key.scope) {
		key.scope = 0;
		f = bpf_map_lookup_elem(&flows, &key);
	}
	return f && f->kind == F_FORWARD ? f : 0;
}

INLINE int is_row(const struct flow *a, const struct flow *b)
{
	return a->kind == b->kind && same(a->saddr, b->saddr) && same(a->daddr, b->daddr) && a->sport == b->sport &&
	       a->dport == b->dport && same_host(a->provider, b->provider);
}

enum { GOES_ON, ENDED, LONG_OVER };

/* How over the connection is whose answers `f` is for. LONG_OVER: the backend has forgotten it, too. */
LOOKUP int ended(const struct flow *f, __u8 proto)
{
	__u32 idle;

	if (f->kind == F_REPLY) {
		f = answered_by(f, proto);
		if (!f)
			return LONG_OVER;
	}
	idle = now() - f->seen;
	if (proto == PROTO_TCP ? !(f->state & STATE_CLOSED) : idle <= idle_of(proto))
		return GOES_ON;
	return idle > TIME_WAIT ? LONG_OVER : ENDED;
}

/* Have the key stand for what came through the host. */
INLINE void name_host(struct flow_key *key, host_t host)
{
#ifdef OVERLACE_OVER_IPV6
	key->host = host;
#else
	key->scope = host;
#endif
	key->by_host = 1;
}

/* Take the name `key` from the connection that ended under it. What else renamed that one must not lead here. */
LOOKUP void take_over(const struct flow_key *key, const struct flow *old)
{
	struct flow_key other = {
		.saddr = old->daddr, .daddr = old->saddr, .sport = old->dport, .dport = old->sport, .proto = key->proto,
	};

	name_host(&other, old->provider);
	if (old->kind == F_VIA && old->dport != key->dport)
		bpf_map_delete_elem(&flows, &other);
}

/* A name for the new connection: `key` with a client's port that no other connection to the backend has, its own if it
 * can be. `own`: the row it would have. One that nobody had lately is better than one of an ended connection, which the
 * backend may still remember (TIME_WAIT). -1: none found. */
INLINE int name(struct flow_key *key, const struct flow *own)
{
	__be16 ended_port = 0;
	struct flow *old;

	for (int i = 0; i < 8; i++) {
		int over;

		old = bpf_map_lookup_elem(&flows, key);
		if (!old || is_row(old, own))
			return 0;
		over = ended(old, key->proto);
		if (over == LONG_OVER)
			goto taken;
		if (over == ENDED && !ended_port)
			ended_port = key->dport;
		if (key->proto == PROTO_SCTP)
			break; /* by another port it would be another packet */
		key->dport = bpf_htons(32768 + bpf_get_prandom_u32() % 28000);
	}
	if (!ended_port)
		return -1;
	key->dport = ended_port;
	old = bpf_map_lookup_elem(&flows, key);
	if (!old)
		return 0;
taken:
	take_over(key, old);
	return 0;
}

/* Enter the reply translation of the new connection `f`; another source port is taken when the backend already has
 * such a connection under another name: two VIPs over one backend, or one published port through two hosts. */
INLINE int bind_reply(const struct pkt *p, const struct question *q, struct flow *f)
{
	ROOM(flow_key, key);
	ROOM(flow, answers);

	key->scope = q->scope;
	key->saddr = f->daddr;
	key->daddr = f->saddr;
	key->sport = f->dport;
	key->dport = p->sport;
	key->proto = p->proto;
	answers->saddr = p->daddr;
	answers->daddr = p->saddr;
	answers->sport = p->dport;
	answers->dport = p->sport;
	answers->vni = q->out == OUT_UNDERLAY ? q->ifindex : q->client_vni;
	answers->peer_vni = f->peer_vni;
	answers->sandbox = f->sandbox;
	answers->seen = f->seen;
	answers->kind = F_REPLY;
	answers->out = q->out;
	if ((!q->scope || (f->state & STATE_PRESERVED)) && f->sandbox) { /* preserved: by the frontend's address */
		key->scope = SCOPE_SANDBOX;
		key->saddr = numbered(f->sandbox);
	}
	if (name(key, answers))
		return -1;
	f->sport = key->dport;
	forget_reply(p, f->peer_vni, f, !(f->state & STATE_PRESERVED) ? &f->daddr : is_none(q->front) ? &p->daddr : &q->front);
	return bpf_map_update_elem(&flows, key, answers, BPF_ANY);
}

/* The backend of this packet to a frontend: the remembered one, or a new one for a new connection.
 * B_GO: `out` holds the translation, out->vni the backend's network. B_PASS: not ours. B_REFUSE: nobody serves it. */
NOINLINE int balance(const struct pkt *p, const struct question *q, struct flow *out)
{
	struct frontend *fe;
	struct flow *f;
	int tcp, syn;
	__be16 port;

	if (!p || !q || !out)
		return B_DROP;
	port = q->port ? q->port : p->dport;
	tcp = p->proto == PROTO_TCP;
	syn = begins_connection(p);
	fe = frontend_of(q->scope, &q->front, port, p->proto);
	f = flow_of(q->scope, p);
	if (f && f->kind == F_FORWARD) {
		struct endpoint *e = endpoint_of(f->vni, &f->daddr);
		int alive = e && e->kind <= K_REMOTE;

		if (syn)
			alive = alive && !(f->state & STATE_CLOSED) && fe && fe->list == f->list;
		else if (tcp && !alive)
			return B_REFUSE;
		else if (!tcp)
			alive = alive && now() - f->seen < idle_of(p->proto);
		if (alive) {
			__u32 at = now();

			if (tcp && (p->tcp_flags & (TCP_FIN | TCP_RST)))
				f->state |= STATE_CLOSED;
			if (f->seen != at)
				f->seen = at;
			*out = *f;
			return B_GO;
		}
	}
	if (tcp && !syn)
		return q->scope ? B_REFUSE : B_PASS;
	if (!fe)
		return q->scope ? B_REFUSE : B_PASS;

	struct flow_key key = {
		.scope = q->scope, .saddr = p->saddr, .daddr = p->daddr, .sport = p->sport, .dport = p->dport, .proto = p->proto,
	};
	__builtin_memset(out, 0, sizeof(*out));
	out->kind = F_FORWARD;
	out->saddr = q->source;
	out->sport = p->sport;
	out->seen = now();
	if (pick(fe, q->scope, &q->front, &p->saddr, p->proto, port, out))
		return B_REFUSE;
	if (same(out->daddr, out->saddr) && out->vni == q->client_vni) { /* hairpin: the client must not see itself */
		struct network *net = bpf_map_lookup_elem(&networks, &out->vni);

		if (!net)
			return B_DROP;
		out->saddr = net->gateway;
	}
	if (bind_reply(p, q, out) || bpf_map_update_elem(&flows, &key, out, BPF_ANY))
		return B_DROP;
	return B_GO;
}

/* A client outside the overlay reached local endpoint `e` through host `provider`: replies go back that way. The same
 * client port may come through two hosts, or through this one, to the same container, which could not tell the
 * connections apart: the later one gets another source port. 1: `out` is how this packet must be translated; -1: no port
 * is left for it. */
NOINLINE int note_via(const struct pkt *p, __u32 vni, const host_t *provider, const struct endpoint *e, struct flow *out)
{
	struct flow *f;
	int renamed, syn;
	QUICK_ROOM(flow_key, here);
	QUICK_ROOM(flow_key, other);
	QUICK_ROOM(flow, via);

	if (!p || !provider || !e || !out)
		return 0;
	syn = begins_connection(p);
	name_host(other, *provider);
	other->saddr = p->error ? p->error_saddr : p->saddr;
	other->daddr = p->error ? p->error_daddr : p->daddr;
	other->sport = p->sport;
	other->dport = p->dport;
	other->proto = p->error ? p->error_proto : p->proto;
	f = bpf_map_lookup_elem(&flows, other);
	renamed = f != 0;
	if (f)
		*out = *f;
	if (p->error)
		return renamed;
	here->scope = SCOPE_SANDBOX;
	here->saddr = numbered(e->sandbox);
	here->daddr = p->saddr;
	here->sport = p->dport;
	here->dport = renamed ? out->sport : p->sport;
	here->proto = p->proto;
	via->saddr = p->daddr;
	via->daddr = p->saddr;
	via->sport = p->dport;
	via->dport = p->sport;
	via->vni = vni;
	via->provider = *provider;
	via->sandbox = e->sandbox;
	via->seen = now();
	via->kind = F_VIA;
	f = bpf_map_lookup_elem(&flows, here);
	if (f && is_row(f, via) && f->vni == vni) {
		if (f->seen != via->seen)
			f->seen = via->seen;
		if (syn)
			f->state &= ~STATE_CLOSED;
		else if (p->proto == PROTO_TCP && (p->tcp_flags & (TCP_FIN | TCP_RST)))
			f->state |= STATE_CLOSED;
		return renamed;
	}
	if (f && p->proto == PROTO_TCP && !syn)
		return renamed; /* another connection of the same name is alive */
	if (!f || (p->proto != PROTO_TCP && p->proto != PROTO_UDP)) { /* new, or forgotten */
		forget(e->ifindex, p->daddr, p->saddr, p->dport, here->dport, p->proto);
		bpf_map_update_elem(&flows, here, via, BPF_ANY);
		return renamed;
	}
	here->dport = p->sport;
	if (name(here, via))
		return -1;
	forget(e->ifindex, p->daddr, p->saddr, p->dport, here->dport, p->proto);
	__builtin_memset(out, 0, sizeof(*out));
	out->saddr = p->saddr;
	out->daddr = p->daddr;
	out->sport = here->dport;
	out->dport = p->dport;
	out->kind = F_FORWARD;
	if (bpf_map_update_elem(&flows, here, via, BPF_ANY))
		return -1;
	if (here->dport == p->sport) {
		bpf_map_delete_elem(&flows, other);
		return 0;
	}
	return bpf_map_update_elem(&flows, other, out, BPF_ANY) ? -1 : 1;
}
