#!/usr/bin/python3
"""Small servers in plain Python that are moved under load. `threads`: a thread for each connection, each with a running
checksum, and two that work on shared memory meanwhile. `sqlite`: each line is a committed transaction."""
import hashlib
import os
import socket
import sqlite3
import sys
import threading
import time

shared, lock = {}, threading.Lock()


def background(number):
    """Allocate, hash, forget, check what was kept."""
    kept = []
    for turn in range(1 << 60):
        text = f"{number}-{turn}" * 200
        kept.append((text, hash(text)))
        if len(kept) > 300:
            old, its_hash = kept.pop(turn % 300)
            if hash(old) != its_hash:
                os._exit(9)
        with lock:
            shared[number] = turn
        time.sleep(0.0005)


def running_checksum(connection):
    """Each line is answered with the checksum of all lines so far."""
    digest = hashlib.sha256()
    for line in connection.makefile("rb"):
        digest.update(line)
        with lock:
            busy = len(shared) == 2
        if not busy:
            os._exit(8)
        connection.sendall(digest.hexdigest().encode() + b"\n")


def transactions(connection, database):
    """`N` is inserted and committed; the answer is the count and the sum of all of this connection's."""
    connection.settimeout(None)
    with sqlite3.connect(database, timeout=60) as store:
        store.execute("create table if not exists numbers (n integer, client text)")
        client = f"{connection.getpeername()}-{time.time_ns()}"
        for line in connection.makefile("rb"):
            with store:
                store.execute("insert into numbers values (?, ?)", (int(line), client))
            count, total = store.execute("select count(*), sum(n) from numbers where client = ?", (client,)).fetchone()
            connection.sendall(f"{count} {total}\n".encode())


def main(kind, port, directory):
    if kind == "threads":
        for number in range(2):
            threading.Thread(target=background, args=(number,), daemon=True).start()
    listener = socket.create_server(("0.0.0.0", port), reuse_port=False)
    while True:
        connection, _ = listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        what = (running_checksum, (connection,)) if kind == "threads" else (transactions, (connection, f"{directory}/store.db"))
        threading.Thread(target=what[0], args=what[1], daemon=True).start()
        del connection, what  # its thread alone holds it, and its end closes it


main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
