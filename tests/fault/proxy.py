#!/usr/bin/python3
"""A TCP proxy that damages one thing once: proxy.py LISTEN TARGET forward|backward BYTE flip|swallow|repeat|cut|noise. Counts
the bytes of all connections in that direction together."""
import os
import socket
import sys
import threading

listen, target, direction, place, what = sys.argv[1:6]
lock = threading.Lock()
passed = 0
done = False


def damage(data):
    """The bytes to pass on instead of these; None: cut both ways."""
    global passed, done
    with lock:
        at, passed = int(place) - passed, passed + len(data)
        if done or not 0 <= at < len(data):
            return data
        done = True
    if what == "flip":
        return data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1:]
    if what == "swallow":
        return data[:at] + data[at + 100:]
    if what == "repeat":
        return data[:at] + data[max(0, at - 100):]
    if what == "noise":
        return data[:at] + os.urandom(64) + data[at + 64:]
    return None


def pump(source, sink, mine):
    try:
        while data := source.recv(1 << 18):
            data = damage(data) if mine else data
            if data is None:
                break
            sink.sendall(data)
    except OSError:
        pass
    for end in (source, sink):
        try:
            end.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass


def address(text):
    host, port = text.rsplit(":", 1)
    return host, int(port)


server = socket.create_server(address(listen))
print("ready", flush=True)
while True:
    client, _ = server.accept()
    other = socket.create_connection(address(target))
    for end in (client, other):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    threading.Thread(target=pump, args=(client, other, direction == "forward"), daemon=True).start()
    threading.Thread(target=pump, args=(other, client, direction == "backward"), daemon=True).start()
