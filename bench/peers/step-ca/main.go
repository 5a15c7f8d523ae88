// Asks a step-ca for certificates as fast as it gives them.
//
//	load setup DIR ADDRESS                        makes keys, certificates and ca.json for a step-ca
//	load issue DIR ADDRESS PID SECONDS CLIENTS    asks it (its process is PID) and prints one JSON object
//
// Each client first gets a certificate by a one-time token and then asks, on one TLS connection that it keeps and that
// this certificate authenticates, for another for a new key, again and again (`/1.0/rekey`). That is what a renewal of
// Hawser's is: the holder of a certificate gets the next one, for another key. Certificates by one-time tokens
// (`/1.0/sign`) are counted apart: each token is another write to step-ca's database.
package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "load:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) == 3 && args[0] == "setup":
		return setup(args[1], args[2])
	case len(args) == 6 && args[0] == "issue":
		seconds, err := strconv.Atoi(args[4])
		if err != nil {
			return err
		}
		clients, err := strconv.Atoi(args[5])
		if err != nil {
			return err
		}
		return issue(args[1], args[2], args[3], time.Duration(seconds)*time.Second, clients)
	}
	return fmt.Errorf("usage: load setup DIR ADDRESS | load issue DIR ADDRESS PID SECONDS CLIENTS")
}

// What one client needs: its own connection, and a key and request for each of two kinds.
type client struct {
	http    *http.Client
	url     string
	tokens  *ecdsa.PrivateKey
	name    string
	request string
}

func issue(dir, address, pid string, measured time.Duration, clients int) error {
	all := make([]*client, clients)
	for n := range all {
		made, err := newClient(dir, address, n)
		if err != nil {
			return err
		}
		all[n] = made
	}
	rekey, err := rate(all, pid, measured, (*client).rekey)
	if err != nil {
		return err
	}
	sign, err := rate(all, pid, measured, (*client).sign)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(map[string]any{"rekey": rekey, "sign": sign})
}

// rate lets all clients ask at once, for a second to warm up and then for as long as is measured.
func rate(all []*client, pid string, measured time.Duration, ask func(*client) error) (map[string]any, error) {
	var issued atomic.Int64
	var failed atomic.Pointer[error]
	var asking sync.WaitGroup
	over := make(chan struct{})
	for _, one := range all {
		asking.Go(func() {
			for {
				select {
				case <-over:
					return
				default:
				}
				if err := ask(one); err != nil {
					failed.Store(&err)
					return
				}
				issued.Add(1)
			}
		})
	}
	time.Sleep(time.Second)
	start, count, busy := time.Now(), issued.Load(), processorSeconds(pid)
	time.Sleep(measured)
	took, got, used := time.Since(start).Seconds(), issued.Load()-count, processorSeconds(pid)-busy
	close(over)
	asking.Wait()
	if err := failed.Load(); err != nil {
		return nil, *err
	}
	return map[string]any{"issued": got, "seconds": took, "server_cpu_seconds": used}, nil
}

// newClient gets its first certificate, by a one-time token; its connection is authenticated by that.
func newClient(dir, address string, n int) (*client, error) {
	root, err := os.ReadFile(filepath.Join(dir, "root.crt"))
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(root)
	text, err := os.ReadFile(filepath.Join(dir, "token.key"))
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	tokens, err := x509.ParseECPrivateKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	key, err := newKey()
	if err != nil {
		return nil, err
	}
	name := fmt.Sprintf("web-%d.bench", n)
	one := &client{url: "https://" + address, tokens: tokens, name: name}
	if one.request, err = request(name, key); err != nil {
		return nil, err
	}
	one.http = connection(&tls.Config{RootCAs: pool})
	chain, err := one.first()
	if err != nil {
		return nil, err
	}
	held := tls.Certificate{PrivateKey: key, Certificate: chain}
	one.http = connection(&tls.Config{RootCAs: pool, Certificates: []tls.Certificate{held}})
	// What it asks for from now on is for another key.
	next, err := newKey()
	if err != nil {
		return nil, err
	}
	one.request, err = request(name, next)
	return one, err
}

func connection(config *tls.Config) *http.Client {
	return &http.Client{Transport: &http.Transport{TLSClientConfig: config}, Timeout: 30 * time.Second}
}

func request(name string, key *ecdsa.PrivateKey) (string, error) {
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: []string{name}}, key)
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})), err
}

func (c *client) first() ([][]byte, error) {
	reply, err := c.signed()
	if err != nil {
		return nil, err
	}
	var answer struct {
		Chain []string `json:"certChain"`
	}
	if err := json.Unmarshal(reply, &answer); err != nil {
		return nil, err
	}
	var chain [][]byte
	for _, text := range answer.Chain {
		if block, _ := pem.Decode([]byte(text)); block != nil {
			chain = append(chain, block.Bytes)
		}
	}
	return chain, nil
}

func (c *client) rekey() error {
	_, err := c.post("/1.0/rekey", map[string]any{"csr": c.request})
	return err
}

func (c *client) sign() error {
	_, err := c.signed()
	return err
}

func (c *client) signed() ([]byte, error) {
	token, err := c.token()
	if err != nil {
		return nil, err
	}
	return c.post("/1.0/sign", map[string]any{"csr": c.request, "ott": token})
}

func (c *client) post(path string, body map[string]any) ([]byte, error) {
	text, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	response, err := c.http.Post(c.url+path, "application/json", bytes.NewReader(text))
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	reply, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, err
	}
	if response.StatusCode != http.StatusCreated {
		return nil, fmt.Errorf("%s: %s: %s", path, response.Status, reply)
	}
	return reply, nil
}

// token is a one-time token: a JWT (RFC 7519) by the provisioner's key, ES256.
func (c *client) token() (string, error) {
	id := make([]byte, 32)
	if _, err := rand.Read(id); err != nil {
		return "", err
	}
	now := time.Now().Unix()
	head, err := json.Marshal(map[string]any{"alg": "ES256", "kid": keyID, "typ": "JWT"})
	if err != nil {
		return "", err
	}
	claims, err := json.Marshal(map[string]any{
		"iss": provisioner, "sub": c.name, "sans": []string{c.name}, "aud": c.url + "/1.0/sign",
		"iat": now, "nbf": now, "exp": now + 300, "jti": base64.RawURLEncoding.EncodeToString(id),
	})
	if err != nil {
		return "", err
	}
	encode := base64.RawURLEncoding.EncodeToString
	text := encode(head) + "." + encode(claims)
	digest := sha256.Sum256([]byte(text))
	r, s, err := ecdsa.Sign(rand.Reader, c.tokens, digest[:])
	if err != nil {
		return "", err
	}
	signature := append(fill(r), fill(s)...)
	return text + "." + encode(signature), nil
}

func fill(n *big.Int) []byte { return n.FillBytes(make([]byte, 32)) }

// processorSeconds is what a process has used, user and system, ended threads included (proc(5); in hundredths).
func processorSeconds(pid string) float64 {
	stat, err := os.ReadFile(filepath.Join("/proc", pid, "stat"))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	fields := strings.Fields(rest)
	if len(fields) < 13 {
		return 0
	}
	user, _ := strconv.ParseFloat(fields[11], 64)
	system, _ := strconv.ParseFloat(fields[12], 64)
	return (user + system) / 100
}
