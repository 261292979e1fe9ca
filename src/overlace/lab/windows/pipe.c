/* The named pipe of Docker Engine on Windows, for an engine that listens on loopback: `pipe.exe NAME PORT`. Every
 * connection to the pipe is spliced to one of TCP.
 *
 * As Docker makes it (go-winio, MessageMode): a pipe of messages that is read as bytes, where a message without bytes says
 * that one side has said all. Must not know what goes through. Runs on Windows, or on Wine.
 */
#define WIN32_LEAN_AND_MEAN
#include <winsock2.h>
#include <ws2tcpip.h>
#include <windows.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#define PIECE 65536

struct link {
	HANDLE pipe;
	SOCKET engine;
	volatile LONG users; /* threads that still move something */
	volatile LONG ended; /* by the engine */
};

/* A pipe handle is overlapped, so that one thread may read while the other writes; each waits for its own call. Returns -1
 * when the other side is gone. */
static long settle(HANDLE pipe, OVERLAPPED *call, BOOL done)
{
	DWORD moved = 0;

	if (!done && GetLastError() != ERROR_IO_PENDING && GetLastError() != ERROR_MORE_DATA)
		return -1;
	if (!GetOverlappedResult(pipe, call, &moved, TRUE) && GetLastError() != ERROR_MORE_DATA)
		return -1;
	return (long)moved;
}

static long read_pipe(HANDLE pipe, HANDLE event, char *data)
{
	OVERLAPPED call = { .hEvent = event };

	return settle(pipe, &call, ReadFile(pipe, data, PIECE, NULL, &call));
}

static int write_pipe(HANDLE pipe, HANDLE event, const char *data, DWORD length)
{
	OVERLAPPED call = { .hEvent = event };

	return settle(pipe, &call, WriteFile(pipe, data, length, NULL, &call)) == (long)length ? 0 : -1;
}

static void leave(struct link *l)
{
	if (InterlockedDecrement(&l->users))
		return;
	CloseHandle(l->pipe); /* no DisconnectNamedPipe: the client would hear of that, and not of an end */
	closesocket(l->engine);
	free(l);
}

/* From the client to the engine. A client that is gone takes the connection with it; one that has said all still listens. */
static DWORD WINAPI to_engine(void *argument)
{
	struct link *l = argument;
	HANDLE event = CreateEventW(NULL, TRUE, FALSE, NULL);
	char *data = malloc(PIECE);
	long n;
	int ended = 0;

	while (!l->ended && (n = read_pipe(l->pipe, event, data)) >= 0) {
		if (!n) {
			shutdown(l->engine, SD_SEND);
			ended = 1;
			continue; /* to hear when it hangs up */
		}
		for (long sent = 0; !ended && sent < n;) {
			int m = send(l->engine, data + sent, (int)(n - sent), 0);

			if (m <= 0) {
				ended = 1;
				break;
			}
			sent += m;
		}
	}
	shutdown(l->engine, SD_BOTH);
	free(data);
	CloseHandle(event);
	leave(l);
	return 0;
}

/* From the engine to the client. At the engine's end what was written is read first, then the pipe is closed: the engine
 * never ends one direction alone. */
static DWORD WINAPI to_client(void *argument)
{
	struct link *l = argument;
	HANDLE event = CreateEventW(NULL, TRUE, FALSE, NULL);
	char *data = malloc(PIECE);
	int n;

	while ((n = recv(l->engine, data, PIECE, 0)) > 0)
		if (write_pipe(l->pipe, event, data, (DWORD)n))
			break;
	if (n <= 0)
		FlushFileBuffers(l->pipe);
	l->ended = 1;
	while (l->users > 1) { /* the other thread reads no more; it may be just about to */
		CancelIoEx(l->pipe, NULL);
		Sleep(5);
	}
	free(data);
	CloseHandle(event);
	leave(l);
	return 0;
}

static SOCKET dial(int port)
{
	struct sockaddr_in where = { .sin_family = AF_INET, .sin_port = htons((uint16_t)port) };
	SOCKET s = socket(AF_INET, SOCK_STREAM, 0);
	int yes = 1;

	where.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	if (s != INVALID_SOCKET && connect(s, (struct sockaddr *)&where, sizeof where)) {
		closesocket(s);
		return INVALID_SOCKET;
	}
	setsockopt(s, IPPROTO_TCP, TCP_NODELAY, (const char *)&yes, sizeof yes);
	return s;
}

static void serve(HANDLE pipe, int port)
{
	struct link *l = malloc(sizeof *l);

	l->pipe = pipe;
	l->users = 2;
	l->ended = 0;
	l->engine = dial(port);
	if (l->engine == INVALID_SOCKET) { /* no engine: as a pipe whose server ends */
		CloseHandle(pipe);
		free(l);
		return;
	}
	CloseHandle(CreateThread(NULL, 0, to_engine, l, 0, NULL));
	CloseHandle(CreateThread(NULL, 0, to_client, l, 0, NULL));
}

int main(int argc, char **argv)
{
	DWORD flags = FILE_FLAG_OVERLAPPED | PIPE_ACCESS_DUPLEX | FILE_FLAG_FIRST_PIPE_INSTANCE;
	HANDLE event = CreateEventW(NULL, TRUE, FALSE, NULL);
	WSADATA started;

	if (argc != 3) {
		fprintf(stderr, "use: pipe.exe \\\\.\\pipe\\NAME PORT\n");
		return 2;
	}
	WSAStartup(MAKEWORD(2, 2), &started);
	for (;;) {
		OVERLAPPED call = { .hEvent = event };
		HANDLE pipe = CreateNamedPipeA(argv[1], flags, PIPE_TYPE_MESSAGE | PIPE_READMODE_BYTE | PIPE_WAIT,
					       PIPE_UNLIMITED_INSTANCES, PIECE, PIECE, 0, NULL);

		if (pipe == INVALID_HANDLE_VALUE) {
			fprintf(stderr, "%s: error %lu\n", argv[1], GetLastError());
			return 1;
		}
		flags &= ~(DWORD)FILE_FLAG_FIRST_PIPE_INSTANCE;
		if (!ConnectNamedPipe(pipe, &call) && GetLastError() == ERROR_IO_PENDING)
			WaitForSingleObject(event, INFINITE);
		serve(pipe, atoi(argv[2]));
	}
}
