/* SPDX-License-Identifier: Apache-2.0 */
/* Keys and values of the data path's maps (maps.h), and a packet as read. maps.py packs the same layouts: LAYOUT names
 * them; change both together. */
#pragma once
#include <linux/pkt_cls.h>
#include "address.h"

#define LAYOUT 18

#define ETH_LEN 14
#define IP_LEN 20
#define OUTER_HEAD (IS_OVER_IPV6 ? 40 : IP_LEN)
#define VXLAN_PUSH (OUTER_HEAD + 30) /* outer IP + UDP + VXLAN + inner Ethernet: between the outer MAC and the inner IP */
#define ETH_ARP 0x0806
#define PROTO_TCP 6
#define PROTO_UDP 17
#define PROTO_SCTP 132 /* its checksum covers ports, and no helper computes it: they are never translated */
#define TCP_FIN 0x01
#define VXLAN_HAS_VNI 0x08000000 /* the I flag, RFC 7348 section 5 */
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10
#define HOST_PACKET 0 /* PACKET_HOST */
#define FAMILY_INET 2
#define FAMILY_INET6 10
#define TURNS 4096
#define SCOPE_SANDBOX 0xffffffff
#define ACCESS_RULES 512 /* of one list; maps.py refuses more */
#define NO_RULE (ACCESS_RULES + 1)
#define MANY_RULES 4095
#define AFFINITY_PROTOCOL 0x80000000
#define FRONTEND_PRESERVES 1
#define BACKENDS 65536 /* of a frontend with session affinity, as far as they are compared */
#define UDP_IDLE 60 /* about seconds: after that a UDP flow picks its backend anew */
#define SCTP_IDLE 600 /* the same for SCTP, whose ends send heartbeats (RFC 9260 section 8.3) */
#define TIME_WAIT 64 /* about seconds: how long an ended connection may be remembered by its ends; Linux forgets after 60 */
#define UNIFIED_AGE 4 /* about seconds: then the layers are asked again, so that what they remember stays in use */
#define AT_TUNNEL 0x80000000
#define MISS 0x100 /* no end of the packet's way: somebody else must do */
#define OTHER_FAMILY 0x101 /* the same: it is an IPv6 packet, for the programs of overlace6.c */

/* Where a packet ended. maps.py has their names, in this order. */
enum reason {
	R_DELIVERED, /* into a local container */
	R_ENCAPSULATED, /* to another host, header pushed by this program */
	R_SLOW_PATH, /* to another host through the kernel's vxlan device */
	R_TO_UNDERLAY, /* translated reply to a client of a published port */
	R_TO_HOST, /* to the host's own stack: outbound NAT and the host's own clients */
	R_ANSWERED_ARP,
	R_ANSWERED_ECHO,
	R_REFUSED, /* TCP reset or ICMP port unreachable sent: no backend */
	R_TOO_BIG, /* ICMP fragmentation needed sent */
	R_DROP_SPOOFED,
	R_DROP_UNKNOWN_VNI,
	R_DROP_WRONG_PROVIDER, /* the inner source does not live behind the outer source */
	R_DROP_NO_ENDPOINT,
	R_DROP_NO_BACKEND,
	R_DROP_ISOLATION, /* an overlay address that is not on the sender's network */
	R_DROP_NO_OUTBOUND, /* outside the overlay, and the endpoint may not go there */
	R_DROP_GARBAGE, /* truncated or malformed */
	R_DROP_ARP, /* question for an unknown address */
	R_DROP_UNSUPPORTED, /* not carried: neither IP nor ARP, some IPv6 headers, multicast nobody replicates */
	R_DROP_NO_PORT, /* interface without a registered endpoint */
	R_DROP_ERROR, /* a kernel helper refused */
	R_DROP_POLICY, /* no access rule lets it in or out */
	R_DROP_RATE, /* more than its QOS policy lets it send */
	R_REPLICATED, /* broadcast or multicast: one copy for each other endpoint's host or container */
	R_DROP_FLOOD, /* more broadcast and multicast than the network lets one host send */
	R_COUNT,
};

enum kind { K_LOCAL = 1, K_REMOTE = 2, K_VIP = 3, K_GATEWAY = 4, K_BROADCAST = 5 };
enum { NET_INGRESS = 1, NET_LOCAL = 2, NET_FLOOD = 4 };
enum { PORT_OUTBOUND = 1, PORT_FILTERED = 2, PORT_METERED = 4, PORT_HOST = 8, PORT_LETS_OUT = 16 };
enum { NAT_NEVER = 1, NAT_ALLOWED = 2 };
enum { ENDPOINT_FILTERED = 1 };
enum verdict { RULE_BLOCK = 0, RULE_ALLOW = 1, RULE_PASS = 2 };
enum { SET_LOCAL = 1, SET_REMOTE = 2 };
enum direction { GOES_IN = 0, GOES_OUT = 1 };
enum { F_FORWARD = 1, F_REPLY = 2, F_VIA = 3, F_CHOSEN = 4 };
enum { OUT_ENDPOINT = 0, OUT_UNDERLAY = 1, OUT_HOST = 2 };
enum { STATE_CLOSED = 1, STATE_PRESERVED = 2 };
enum origin { FROM_CONTAINER, FROM_UNDERLAY, FROM_HOST };

struct config {
	__u32 underlay_ifindex;
	__be32 underlay_addr; /* the host's in tunnels, and towards containers in place of 127.0.0.1 */
	__be32 underlay_mask; /* next hops inside it are on the link */
	__u32 underlay_mtu;
	__u32 vxlan_ifindex;
	__u32 lo_ifindex;
	__be16 vxlan_port;
	__u8 narrow; /* some path takes less than underlay_mtu: see struct path */
	__u8 slow; /* everything for other hosts goes through the kernel's vxlan device */
#ifdef OVERLACE_OVER_IPV6
	/* The addresses above are those of clients of published ports then, and these the tunnels'. */
	six_t tunnel_addr, tunnel_mask;
#endif
};

struct network {
	addr_t gateway;
	__u8 gateway_mac[6];
	__u8 flags;
	__u8 pad;
};

struct address_key {
	__u32 vni;
	addr_t addr;
};

struct endpoint {
	host_t provider; /* K_REMOTE: its host */
	__u32 ifindex; /* K_LOCAL: host side of its veth */
	__u32 sandbox; /* K_LOCAL: number of its network namespace, see netns.py */
	__u8 mac[6];
	__u8 kind;
	__u8 flags;
};

struct port { /* by ifindex of the host-side veth */
	__u32 vni;
	addr_t addr;
	__u32 sandbox;
	__u32 exceptions; /* list number, 0: none */
	__u8 mac[6];
	__u8 flags;
	__u8 pad;
#ifdef OVERLACE_IPV6
	__u32 more_pad;
#endif
	__u64 access[2]; /* PORT_FILTERED: lists by enum direction */
	__u32 routes; /* scope of its own routes, 0: none */
	__u32 more;
};

struct subnet_key {
	__u32 prefix;
	addr_t addr;
};

struct exception_key { /* where an endpoint with outbound NAT may not go all the same, and where it may even so */
	__u32 prefix; /* bits: 32 for the list, and the destination's */
	__u32 list; /* by content, as in struct frontend: most endpoints share one */
	addr_t to;
};

struct route_key { /* addresses behind another host, besides those of known endpoints */
	__u32 prefix; /* 32 for the network, and the destination's */
	__u32 vni; /* of a network, ROUTES_OF and the number of a port's own, or BEHIND and the VNI */
	addr_t addr;
};

#define ROUTES_OF 0x40000000
#define BEHIND 0x80000000 /* who sends for these addresses and gets what is for them */

struct route {
	host_t provider;
	__u32 vni; /* on the wire */
	__u8 mac[6];
	__u8 pad[2];
	addr_t hop; /* the endpoint it goes to, in place of all that: ROUTES_OF and BEHIND; all ones: the host's own stack */
};

struct access_rule { /* all must hold; a mask of 0 holds always */
	addr_t local, local_mask; /* SET_LOCAL: an address set's number, see access.h */
	addr_t remote, remote_mask;
	__u16 local_low, local_high; /* ports, both inclusive, host order */
	__u16 remote_low, remote_high;
	__u8 proto; /* 0: any */
	__u8 action; /* enum verdict */
	__u8 sets; /* SET_LOCAL, SET_REMOTE */
	__u8 tier; /* RULE_PASS leaves the rest of its tier out */
};

struct access_list { /* the first rule that decides counts; none: no */
	__u32 count;
	struct access_rule rules[ACCESS_RULES];
};

struct set_key { /* an address set of access rules, named by content */
	__u32 prefix; /* 64 for the set, and the address's */
	__u32 set[2];
	addr_t addr;
};

struct access_key { /* a connection of a filtered endpoint, the same for both directions */
	__u32 vni;
	addr_t local, remote;
	__be16 local_port, remote_port;
	__u8 proto;
	__u8 pad[3];
};

struct access { /* that it was allowed */
	__u64 list; /* by which list: another one decides anew */
	__u32 seen; /* as in struct flow */
	__u32 direction : 8; /* of its first packet */
	__u32 rule : 12, passed : 12; /* as in struct judged */
};

struct judged { /* by which list, and by which of its rules; places begin with 1 here, 0: none */
	__u64 list;
	__u16 rule; /* the one that decided, NO_RULE: none did */
	__u16 passed; /* the one that passed before that, MANY_RULES: several did */
	__u64 packets, bytes; /* how many of the flow's they have counted */
};

struct hit_key {
	__u64 list;
	__u32 ifindex; /* of the filtered endpoint's port */
	__u32 rule; /* its place in the list, from 0; ACCESS_RULES: none decided */
};

struct hit {
	__u64 connections; /* first packets: what was judged, not remembered */
	__u64 packets, bytes; /* of IP packets */
};

struct frontend_key {
	__u32 vni;
	addr_t addr;
	__be16 port;
	__u8 proto;
	__u8 pad;
};

struct frontend {
	__u64 list; /* names the list of backends by content: the same list has the same number */
	__u32 count;
	__u32 affinity; /* seconds a client keeps its backend, 0: each connection anew; AFFINITY_PROTOCOL */
	__u32 flags; /* FRONTEND_PRESERVES: backends get packets for the frontend's own address and port */
	__u32 pad;
};

struct affinity_key { /* a client of a frontend with session affinity */
	__u32 scope;
	addr_t front, client;
	__u8 proto; /* 0 unless protocols are kept apart */
	__u8 pad[3];
};

struct member { /* a backend of a frontend with session affinity */
	__u64 list;
	__u32 vni;
	addr_t addr;
	__be16 port;
	__u16 pad[3];
#ifdef OVERLACE_IPV6
	__u32 more_pad;
#endif
};

struct affinity {
	__u32 vni;
	addr_t addr;
	__be16 port; /* as in struct backend */
	__u16 pad;
	__u32 seen; /* as in struct flow */
};

struct backend_key {
	__u64 list;
	__u32 index;
	__u32 pad;
};

struct backend {
	__u32 vni;
	addr_t addr;
	__be16 port; /* 0 keeps the packet's own */
	__u16 pad;
	addr_t source; /* address it sees its clients under; none: theirs */
};

struct flow_key {
	/* VNI; 0 for connections whose client is outside the overlay. Answers of a local backend to such clients have
	 * SCOPE_SANDBOX and the sandbox in place of saddr: a container of several networks answers by its default route,
	 * and a UDP server then with the source address of that interface. */
	__u32 scope;
	addr_t saddr, daddr;
	__be16 sport, dport;
	__u8 proto;
	__u8 by_host; /* 1: the key has the host a client outside came through, and the flow is its translation here */
	__u8 pad[2];
#ifdef OVERLACE_OVER_IPV6
	host_t host; /* by_host; over IPv4 it is in `scope` */
#endif
};

struct flow { /* addresses and ports are those the packet shall have; F_CHOSEN: those the client asked for */
	addr_t saddr, daddr;
	__be16 sport, dport;
	__u32 vni; /* where daddr lives (OUT_ENDPOINT); OUT_UNDERLAY: the interface its client came in by, 0: the underlay's */
	__u32 peer_vni; /* F_REPLY: where the backend lives */
	__u32 sandbox; /* of the backend when it is local */
	host_t provider; /* F_VIA: back to this host */
	__u32 seen; /* bpf_ktime_get_ns() >> 30 */
#ifdef OVERLACE_OVER_IPV6
	__u32 more_pad;
#endif
	__u64 list;
	__u8 kind, state, out, pad[5];
};

struct reach_key { /* where a container's sockets reach services at the socket level, see socket.c */
	__u32 prefix; /* 32 for the sandbox, and the destination's */
	__u32 sandbox;
	addr_t to;
};

struct reach { /* the interface that leads there */
	__u32 vni;
	addr_t addr; /* its own */
};

struct choice { /* of a socket: the service it asked for, and the backend it was given */
	__u32 vni;
	addr_t front, back;
	__be16 front_port, back_port;
	__u64 list; /* as in struct flow */
};

/* The unified flow: what the layers together made of a connection's first packet, so that later ones need one lookup. */
struct unified_key { /* the packet as it came */
	__u32 point; /* ifindex it came in by, or AT_TUNNEL and the VNI */
	addr_t saddr, daddr;
	__be16 sport, dport;
	__u8 proto;
	__u8 pad[3];
};

#define U_METERED 0x80 /* its sender has a rate limit */
#define U_NOTED 0x40 /* its end is for the layers to see */
enum { U_DELIVER = 1, U_ENCAPSULATE, U_UNDERLAY, U_TO_HOST, U_LOOPBACK };

struct unified_flow {
	__u32 generation; /* of the tables it was decided by; another one: decide anew */
	__u32 decided, seen; /* as struct flow's */
	addr_t saddr, daddr; /* the packet as it goes on */
	__be16 sport, dport;
	host_t from; /* AT_TUNNEL: the host it must come from */
	host_t provider; /* U_ENCAPSULATE: the host it goes to */
	__u32 vni; /* U_ENCAPSULATE */
	__u32 ifindex; /* U_DELIVER, U_UNDERLAY */
	__u8 own[6]; /* of a container: its source MAC */
	__u8 src[6], dst[6]; /* MACs it goes on with */
	__u8 verdict, flags; /* U_METERED, U_NOTED; TCP_FIN and TCP_RST once it has carried one */
	__u32 began; /* as seen */
	__u32 tick; /* of the kernel's jiffies in which it was last used */
	__u32 pad;
	__u64 packets, bytes;
	struct judged judged[2]; /* by enum direction: the rules its packets count for */
};

#define NEWCOMERS 2048
#define BRIEF 7 /* packets one way of a TCP connection that are not worth a row of their own */

struct newcomer { /* a TCP connection without a unified flow yet; two of one place push each other out */
	__u32 name; /* a hash of it, and in the last four bits its packets so far */
	__u32 bytes;
	__u32 began, pad;
};

#define FLOOD_TARGETS 4096 /* of one network; maps.py refuses more */
#define FLOOD_RATE 0xffffffff /* index of the row that holds the network's rate in place of a target */

struct flood_key {
	__u32 vni;
	__u32 index; /* from 0, without gaps: endpoints here, then the other hosts */
};

struct flood {
	addr_t local; /* an endpoint here; 0: the next is meant */
	host_t provider; /* another host; FLOOD_RATE: packets per second that may be sent from here */
};

struct fragment_key {
	__u32 scope;
	addr_t saddr, daddr;
#ifdef OVERLACE_IPV6
	__be32 id;
	__u8 proto;
	__u8 pad[3];
#else
	__be16 id;
	__u8 proto;
	__u8 pad;
#endif
};

struct fragment {
	__be16 sport, dport;
};

struct dropped {
	__u32 vni; /* of the network the packet was read on */
	__u32 reason;
};

/* One packet as read. Offsets are from the start of the frame. */
struct pkt {
	addr_t saddr, daddr;
	__be16 sport, dport;
	__u16 l3, l4;
	__u16 length; /* of the IP packet, bytes */
	__u8 proto, tcp_flags;
	__u8 df, fragment, later, ihl, tos; /* later: a fragment that is not the first; ihl in bytes */
	__u8 l4_len, icmp_type;
	__u8 origin; /* enum origin: which way answers go */
	/* An ICMP error speaks of a packet this connection sent: sport, dport and the fields below then name the
	 * connection in the direction the error travels. */
	__u8 error, error_proto;
	addr_t error_saddr, error_daddr;
	addr_t complain; /* source address of ICMP errors about this packet */
	struct unified_key came;
	__u32 generation; /* read before any table; 0: this packet makes no unified flow */
	host_t from;
	__u8 own[6];
	__u8 metered; /* its sender has a rate limit */
	__u8 noted; /* U_NOTED */
#ifdef OVERLACE_IPV6
	__u8 hops; /* hop limit */
#endif
};
