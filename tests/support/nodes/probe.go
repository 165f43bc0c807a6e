// What runs in the pods of the bench: one static program, which its image holds alone.
//
//	probe                    stays, as the sandbox of a pod
//	probe serve NAME FILE    adds a line to FILE, says hello, and answers every request on port 8080 with NAME
//	probe get URL            prints the answer; https is the API server, asked as the pod's account
//
// Not a busybox: Debian's static one ends with SIGSEGV where /etc/resolv.conf names a server, as every pod's does.
package main

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"
)

const account = "/var/run/secrets/kubernetes.io/serviceaccount/"

func main() {
	switch {
	case len(os.Args) == 4 && os.Args[1] == "serve":
		serve(os.Args[2], os.Args[3])
	case len(os.Args) == 3 && os.Args[1] == "get":
		get(os.Args[2])
	default:
		for {
			time.Sleep(time.Hour)
		}
	}
}

func serve(name, file string) {
	starts, err := os.OpenFile(file, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	check(err)
	_, err = starts.WriteString("start\n")
	check(err)
	// A power cut leaves what was synced.
	check(starts.Sync())
	fmt.Println("hello from", name)
	answer := func(to http.ResponseWriter, _ *http.Request) { fmt.Fprintln(to, name) }
	check(http.ListenAndServe(":8080", http.HandlerFunc(answer)))
}

func get(url string) {
	request, err := http.NewRequest(http.MethodGet, url, nil)
	check(err)
	transport := &http.Transport{}
	if strings.HasPrefix(url, "https:") {
		authority := x509.NewCertPool()
		authority.AppendCertsFromPEM(read("ca.crt"))
		transport.TLSClientConfig = &tls.Config{RootCAs: authority}
		request.Header.Set("Authorization", "Bearer "+string(read("token")))
	}
	// For a moment after a change, a Service still leads to a pod that is gone.
	client := http.Client{Transport: transport, Timeout: 5 * time.Second}
	answer, err := client.Do(request)
	check(err)
	_, err = io.Copy(os.Stdout, answer.Body)
	check(err)
	if answer.StatusCode != http.StatusOK {
		check(fmt.Errorf("%s: %s", url, answer.Status))
	}
}

func read(name string) []byte {
	bytes, err := os.ReadFile(account + name)
	check(err)
	return bytes
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "probe:", err)
		os.Exit(1)
	}
}
