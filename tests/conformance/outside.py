"""The world beyond a lab's underlay, run as a program in the switch's namespace: `outside.py ADDRESS`.

A web server that answers with the address it was asked from, and a name server that knows `www.example` alone.
"""

from __future__ import annotations

import http.server
import socketserver
import sys
import threading

import dns.flags
import dns.message
import dns.rcode
import dns.rrset

NAME = "www.example."


class Web(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = self.client_address[0].encode() + b"\n"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


class Names(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        data, socket = self.request
        query = dns.message.from_wire(data)
        answer = dns.message.make_response(query)
        answer.flags |= dns.flags.RA
        question = query.question[0]
        if question.name.to_text() != NAME:
            answer.set_rcode(dns.rcode.NXDOMAIN)
        elif question.rdtype == 1:
            answer.answer.append(dns.rrset.from_text(NAME, 60, "IN", "A", sys.argv[1]))
        socket.sendto(answer.to_wire(), self.client_address)


def main() -> None:
    names = socketserver.UDPServer((sys.argv[1], 53), Names)
    web = http.server.ThreadingHTTPServer((sys.argv[1], 80), Web)
    threading.Thread(target=names.serve_forever, daemon=True).start()
    web.serve_forever()


if __name__ == "__main__":
    main()
