/* What the sources of the stand-in share: the platform (Linux or Windows), the results, and what each file gives the
 * others. Must not hold code.
 */
#pragma once

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef _WIN32
#include <winsock2.h>
#include <windows.h>
#include <objbase.h>
#define EXPORT __declspec(dllexport)
#define CALL WINAPI
#define allocate(size) CoTaskMemAlloc(size)
#define release(p) CoTaskMemFree(p)
typedef SOCKET connection;
#define NO_CONNECTION INVALID_SOCKET
#define hang_up(s) closesocket(s)
#define STOP_BOTH SD_BOTH
typedef HANDLE thread;
#else
#include <errno.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sys/socket.h>
#include <unistd.h>
#define EXPORT __attribute__((visibility("default")))
#define CALL
#define allocate(size) malloc(size)
#define release(p) free(p)
typedef int32_t HRESULT;
typedef int connection;
#define NO_CONNECTION (-1)
#define hang_up(s) close(s)
#define STOP_BOTH SHUT_RDWR
typedef pthread_t thread;
#endif

typedef uint16_t wide; /* UTF-16LE, whatever wchar_t is */

#define FAILED_MEMORY ((HRESULT)0x8007000e)
#define NOT_IMPLEMENTED ((HRESULT)0x80004001)
#define FAILED_POINTER ((HRESULT)0x80004003)
#define SERVER_UNAVAILABLE ((HRESULT)0x800706ba)
#define CALL_FAILED ((HRESULT)0x800706be)
#define SERVICE_DISCONNECT 0x01000000u

/* texts.c */

/* Ended by a zero; NULL without memory; to free. */
char *to_utf8(const wide *text, size_t *length);
/* Ended by a zero; NULL without memory; to `release`, by a caller of the library as well. */
wide *to_utf16(const unsigned char *text, size_t length);
/* "-" for NULL */
void guid_text(const unsigned char *guid, char out[37]);

/* wire.c; HRESULTs of its own: FAILED_MEMORY, SERVER_UNAVAILABLE, CALL_FAILED */

connection dial(void);
int receive_line(connection s, char *line, size_t size);
HRESULT receive_text(connection s, long long length, wide **out);
HRESULT ask(connection s, const char *operation, uint64_t handle, const void *id, const char *document, size_t length);
HRESULT answer(connection s, void **handle, wide **result, wide **record);
/* A whole call on a connection of its own. What may be NULL: `id`, `document` and where the answers go. */
HRESULT forward_bytes(const char *operation, void *handle, const void *id, const char *document, size_t length,
		      void **made, wide **result, wide **record);
HRESULT forward(const char *operation, void *handle, const void *id, const wide *document, void **made, wide **result,
		wide **record);
