// A static Go program: a hundred goroutines with stacks that grow and move, a heap that is collected, channels, timers
// and a TCP server. The protocol is that of program.h: DIR/ready, DIR/check.N, DIR/result.N, DIR/quit.
package main

import (
	"bufio"
	"fmt"
	"hash/fnv"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const workers = 100

var (
	mutex sync.Mutex
	wrong []string
	turns [workers]uint64
)

func complain(format string, args ...any) {
	mutex.Lock()
	defer mutex.Unlock()
	if len(wrong) < 5 {
		wrong = append(wrong, fmt.Sprintf(format, args...))
	}
}

// Deep recursion makes the stack grow, and what it leaves makes it shrink.
func depth(n int, seed uint64) uint64 {
	var local [32]uint64
	for i := range local {
		local[i] = seed + uint64(n*i)
	}
	if n == 0 {
		return seed
	}
	sum := depth(n-1, seed)
	for i := range local {
		if local[i] != seed+uint64(n*i) {
			complain("stack: level %d word %d", n, i)
		}
	}
	return sum + 1
}

func hash(text string) uint64 {
	h := fnv.New64a()
	h.Write([]byte(text))
	return h.Sum64()
}

func work(id int, requests <-chan string, answers chan<- uint64) {
	kept := map[string]uint64{}
	ticker := time.NewTicker(5 * time.Millisecond)
	for n := uint64(0); ; {
		select {
		case text := <-requests:
			answers <- hash(text)
		case <-ticker.C:
			n++
			key := fmt.Sprintf("%d-%d", id, n%500)
			if old, there := kept[key]; there && old != hash(key) {
				complain("map: %s", key)
			}
			kept[key] = hash(key)
			levels := int(n*7%300) + 1
			if got := depth(levels, n); got != n+uint64(levels) {
				complain("recursion: %d", got)
			}
			atomic.AddUint64(&turns[id], 1)
		}
	}
}

func serve(listener net.Listener) {
	for {
		connection, err := listener.Accept()
		if err != nil {
			complain("accept: %v", err)
			return
		}
		go func() {
			defer connection.Close()
			lines := bufio.NewScanner(connection)
			for lines.Scan() {
				fmt.Fprintf(connection, "%d\n", hash(lines.Text()))
			}
		}()
	}
}

func look(requests []chan string, answers []chan uint64, before *[workers]uint64, round int) {
	for id := range requests {
		text := fmt.Sprintf("round %d worker %d", round, id)
		requests[id] <- text
		if got := <-answers[id]; got != hash(text) {
			complain("worker %d answers %d", id, got)
		}
	}
	end := time.Now().Add(20 * time.Second)
	for id := range before {
		for atomic.LoadUint64(&turns[id]) == before[id] {
			if time.Now().After(end) {
				complain("worker %d stands still", id)
				break
			}
			time.Sleep(time.Millisecond)
		}
		before[id] = atomic.LoadUint64(&turns[id])
	}
	runtime.GC()
}

func write(dir, name, text string) {
	temporary := filepath.Join(dir, "."+name)
	if os.WriteFile(temporary, []byte(text), 0o644) != nil || os.Rename(temporary, filepath.Join(dir, name)) != nil {
		os.Exit(3)
	}
}

func exists(dir, name string) bool {
	_, err := os.Stat(filepath.Join(dir, name))
	return err == nil
}

func main() {
	dir := os.Args[1]
	listener, err := net.Listen("tcp4", "0.0.0.0:7000")
	if err != nil {
		write(dir, "ready", "ERROR "+err.Error()+"\n")
		os.Exit(3)
	}
	go serve(listener)
	requests, answers := make([]chan string, workers), make([]chan uint64, workers)
	for id := range requests {
		requests[id], answers[id] = make(chan string), make(chan uint64)
		go work(id, requests[id], answers[id])
	}
	var before [workers]uint64
	write(dir, "ready", fmt.Sprintf("%d\n", os.Getpid()))
	for round := 1; ; round++ {
		for !exists(dir, fmt.Sprintf("check.%d", round)) {
			if exists(dir, "quit") {
				return
			}
			time.Sleep(time.Millisecond)
		}
		look(requests, answers, &before, round)
		mutex.Lock()
		result := "PASS\n"
		if len(wrong) > 0 {
			result = "FAIL: goroutines: " + strings.Join(wrong, "; ") + "\n"
		}
		mutex.Unlock()
		write(dir, fmt.Sprintf("result.%d", round), result)
	}
}
