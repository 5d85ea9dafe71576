"""Requests to a proxy that two readers could read differently. No tests here."""


def request(line: str, *fields: str) -> bytes:
    return "\r\n".join([line, *fields, "", ""]).encode("latin-1")


SMUGGLING = {
    "two lengths": request(
        "POST http://a.test/ HTTP/1.1", "Host: a.test", "Content-Length: 1", "Content-Length: 2"
    ),
    "the same length twice": request(
        "POST http://a.test/ HTTP/1.1", "Host: a.test", "Content-Length: 1", "content-length: 1"
    ),
    "a list of lengths": request("POST http://a.test/ HTTP/1.1", "Host: a.test", "Content-Length: 1, 2"),
    "a list of equal lengths": request(
        "POST http://a.test/ HTTP/1.1", "Host: a.test", "Content-Length: 1, 1"
    ),
    "chunks in HTTP/1.0": request(
        "POST http://a.test/ HTTP/1.0", "Host: a.test", "Transfer-Encoding: chunked"
    ),
    "length and chunks": request(
        "POST http://a.test/ HTTP/1.1", "Host: a.test", "Content-Length: 1", "Transfer-Encoding: chunked"
    ),
    "length with a sign": request("POST http://a.test/ HTTP/1.1", "Host: a.test", "Content-Length: +1"),
    "space before the colon": request("POST http://a.test/ HTTP/1.1", "Host: a.test", "Content-Length : 1"),
    "bare CR": request("GET http://a.test/ HTTP/1.1", "Host: a.test", "X: a\rb"),
    "bare LF": b"GET http://a.test/ HTTP/1.1\nHost: a.test\n\n",
    "one bare LF": request("GET http://a.test/ HTTP/1.1", "X: y\nHost: a.test"),
    "NUL": request("GET http://a.test/ HTTP/1.1", "Host: a.test", "X: a\0b"),
    "folded line": request("GET http://a.test/ HTTP/1.1", "Host: a.test", "X: a", " b"),
    "user in the target": request("GET http://u@a.test/ HTTP/1.1", "Host: a.test"),
    "user and password": request("GET http://u:p@a.test/ HTTP/1.1", "Host: a.test"),
    "another Host": request("GET http://a.test/ HTTP/1.1", "Host: b.test"),
    "another port in Host": request("GET http://a.test/ HTTP/1.1", "Host: a.test:81"),
    "two Hosts": request("GET http://a.test/ HTTP/1.1", "Host: a.test", "Host: a.test"),
    "no Host": request("GET http://a.test/ HTTP/1.1"),
    "another Host than CONNECT's": request("CONNECT a.test:443 HTTP/1.1", "Host: b.test:443"),
    "another port than CONNECT's": request("CONNECT a.test:443 HTTP/1.1", "Host: a.test:80"),
    "CONNECT with a body": request("CONNECT a.test:443 HTTP/1.1", "Host: a.test:443", "Content-Length: 5"),
    "CONNECT with chunks": request(
        "CONNECT a.test:443 HTTP/1.1", "Host: a.test:443", "Transfer-Encoding: chunked"
    ),
    "CONNECT without a port": request("CONNECT a.test HTTP/1.1", "Host: a.test"),
    "CONNECT to port 0": request("CONNECT a.test:0 HTTP/1.1", "Host: a.test:0"),
    "CONNECT to port 65536": request("CONNECT a.test:65536 HTTP/1.1", "Host: a.test"),
    "a URL with port 0": request("GET http://a.test:0/ HTTP/1.1", "Host: a.test:0"),
    "a URL with port 65536": request("GET http://a.test:65536/ HTTP/1.1", "Host: a.test:65536"),
    "CONNECT to a URL": request("CONNECT http://a.test/ HTTP/1.1", "Host: a.test"),
    "CONNECT to no host": request("CONNECT a..b:443 HTTP/1.1", "Host: a..b:443"),
    "a fragment": request("GET http://a.test/#b HTTP/1.1", "Host: a.test"),
    "no host": request("GET http:/// HTTP/1.1", "Host: a.test"),
    "space in the target": request("GET http://a.test/a b HTTP/1.1", "Host: a.test"),
    "no version": request("GET http://a.test/"),
    "no request": b"hello\r\n\r\n",
}
