package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"time"
)

// What one provisioner's tokens name it by.
const (
	provisioner = "bench"
	keyID       = "bench"
)

// setup makes a root, an intermediate (P-256 both) and step-ca's configuration: the database that `step ca init` chooses,
// and one provisioner whose key signs one-time tokens.
func setup(dir, address string) error {
	rootKey, err := newKey()
	if err != nil {
		return err
	}
	root := authority("root", 1)
	rootDER, err := x509.CreateCertificate(rand.Reader, root, root, &rootKey.PublicKey, rootKey)
	if err != nil {
		return err
	}
	key, err := newKey()
	if err != nil {
		return err
	}
	der, err := x509.CreateCertificate(rand.Reader, authority("intermediate", 0), root, &key.PublicKey, rootKey)
	if err != nil {
		return err
	}
	tokenKey, err := newKey()
	if err != nil {
		return err
	}
	for name, block := range map[string]*pem.Block{
		"root.crt":         {Type: "CERTIFICATE", Bytes: rootDER},
		"intermediate.crt": {Type: "CERTIFICATE", Bytes: der},
		"intermediate.key": {Type: "EC PRIVATE KEY", Bytes: marshal(key)},
		"token.key":        {Type: "EC PRIVATE KEY", Bytes: marshal(tokenKey)},
	} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			return err
		}
	}
	config, err := json.MarshalIndent(configuration(dir, address, &tokenKey.PublicKey), "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "ca.json"), config, 0o600)
}

func configuration(dir, address string, key *ecdsa.PublicKey) map[string]any {
	at := func(name string) string { return filepath.Join(dir, name) }
	number := func(n *big.Int) string {
		return base64.RawURLEncoding.EncodeToString(fill(n))
	}
	jwk := map[string]any{
		"kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": keyID,
		"x": number(key.X), "y": number(key.Y),
	}
	return map[string]any{
		"root": at("root.crt"), "crt": at("intermediate.crt"), "key": at("intermediate.key"),
		"address": address, "dnsNames": []string{"127.0.0.1"},
		"logger": map[string]any{"format": "text"},
		"db":     map[string]any{"type": "badgerv2", "dataSource": at("db")},
		"authority": map[string]any{
			"provisioners": []any{map[string]any{"type": "JWK", "name": provisioner, "key": jwk}},
		},
	}
}

func newKey() (*ecdsa.PrivateKey, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }

func marshal(key *ecdsa.PrivateKey) []byte {
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		panic(err) // Only for curves without a name.
	}
	return der
}

func authority(name string, below int) *x509.Certificate {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 126))
	if err != nil {
		panic(err) // The system has no randomness.
	}
	return &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "bench " + name},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, MaxPathLen: below, MaxPathLenZero: below == 0,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
}
