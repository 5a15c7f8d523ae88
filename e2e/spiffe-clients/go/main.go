// A workload that uses go-spiffe as it comes: one line for each certificate that it is given, mTLS with what it has.
package main

import (
	"context"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/federation"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

type watcher struct{}

func (watcher) OnX509ContextUpdate(c *workloadapi.X509Context) {
	leaf := c.DefaultSVID().Certificates[0]
	fmt.Printf("serial %x %s bundles=%d\n", leaf.SerialNumber, c.DefaultSVID().ID, len(c.Bundles.Bundles()))
	for _, svid := range c.SVIDs {
		pool := x509.NewCertPool()
		bundle, err := c.Bundles.GetX509BundleForTrustDomain(svid.ID.TrustDomain())
		check(err)
		for _, authority := range bundle.X509Authorities() {
			pool.AddCert(authority)
		}
	}
}

func (watcher) OnX509ContextWatchError(err error) {
	fmt.Fprintln(os.Stderr, "watch:", err)
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func source(ctx context.Context) *workloadapi.X509Source {
	source, err := workloadapi.NewX509Source(ctx)
	check(err)
	return source
}

func serve(ctx context.Context) {
	x509 := source(ctx)
	server := http.Server{
		TLSConfig: tlsconfig.MTLSServerConfig(x509, x509, tlsconfig.AuthorizeMemberOf(domain(ctx, x509))),
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, "hello %s", r.TLS.PeerCertificates[0].URIs[0])
		}),
	}
	server.Addr = os.Args[2]
	check(server.ListenAndServeTLS("", ""))
}

func domain(_ context.Context, source *workloadapi.X509Source) spiffeid.TrustDomain {
	svid, err := source.GetX509SVID()
	check(err)
	return svid.ID.TrustDomain()
}

func call(ctx context.Context) {
	x509 := source(ctx)
	config := tlsconfig.MTLSClientConfig(x509, x509, tlsconfig.AuthorizeMemberOf(domain(ctx, x509)))
	client := http.Client{Transport: &http.Transport{TLSClientConfig: config}}
	response, err := client.Get("https://" + os.Args[2])
	check(err)
	body, err := io.ReadAll(response.Body)
	check(err)
	fmt.Println(string(body))
}

// The token is checked here, by the bundle, and there, by the Workload API.
func jwt(ctx context.Context) {
	svid, err := workloadapi.FetchJWTSVID(ctx, jwtsvid.Params{Audience: "db"})
	check(err)
	bundles, err := workloadapi.FetchJWTBundles(ctx)
	check(err)
	parsed, err := jwtsvid.ParseAndValidate(svid.Marshal(), jwtbundle.Source(bundles), []string{"db"})
	check(err)
	_, err = workloadapi.ValidateJWTSVID(ctx, svid.Marshal(), "db")
	check(err)
	_, err = workloadapi.ValidateJWTSVID(ctx, svid.Marshal(), "other")
	if err == nil {
		check(fmt.Errorf("a token for db was taken for other"))
	}
	fmt.Println("jwt", parsed.ID, svid.Marshal())
}

// Fetches a bundle from a bundle endpoint: bundle TRUST-DOMAIN URL spiffe BUNDLE-FILE ENDPOINT-ID, or web CA-FILE. What
// was fetched is printed as it is marshalled again.
func bundle(ctx context.Context) {
	domain, url, profile, file := spiffeid.RequireTrustDomainFromString(os.Args[2]), os.Args[3], os.Args[4], os.Args[5]
	var proof federation.FetchOption
	if profile == "spiffe" {
		endpoint := spiffeid.RequireFromString(os.Args[6])
		known, err := spiffebundle.Load(endpoint.TrustDomain(), file)
		check(err)
		proof = federation.WithSPIFFEAuth(known.X509Bundle(), endpoint)
	} else {
		pem, err := os.ReadFile(file)
		check(err)
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM(pem)
		proof = federation.WithWebPKIRoots(roots)
	}
	fetched, err := federation.FetchBundle(ctx, domain, url, proof)
	check(err)
	text, err := fetched.Marshal()
	check(err)
	fmt.Println(string(text))
}

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	switch os.Args[1] {
	case "watch":
		check(workloadapi.WatchX509Context(ctx, watcher{}))
	case "serve":
		serve(ctx)
	case "call":
		call(ctx)
	case "jwt":
		jwt(ctx)
	case "bundle":
		bundle(ctx)
	}
}
