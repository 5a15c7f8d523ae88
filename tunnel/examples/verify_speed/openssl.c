/* The same handshakes with OpenSSL: mutual, TLS 1.3, full, in memory; and the verification of the chain alone.
 * usage: openssl DIRECTORY COUNT; the directory has key.pem, chain.pem (leaf first), issuer.pem and root.pem.
 * Prints nanoseconds of CPU time for each: client, server, verification. */
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509_vfy.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static long long cpu(void) {
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static void must(int ok, const char *what) {
    if (!ok) {
        fprintf(stderr, "%s\n", what);
        ERR_print_errors_fp(stderr);
        exit(1);
    }
}

static char path_of[4096];
static const char *file(const char *directory, const char *name) {
    snprintf(path_of, sizeof path_of, "%s/%s", directory, name);
    return path_of;
}

static SSL_CTX *context(const SSL_METHOD *method, const char *directory) {
    SSL_CTX *context = SSL_CTX_new(method);
    SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION);
    must(SSL_CTX_set_ciphersuites(context, "TLS_AES_128_GCM_SHA256"), "suites");
    must(SSL_CTX_use_certificate_chain_file(context, file(directory, "chain.pem")), "chain");
    must(SSL_CTX_use_PrivateKey_file(context, file(directory, "key.pem"), SSL_FILETYPE_PEM), "key");
    must(SSL_CTX_load_verify_file(context, file(directory, "root.pem")), "root");
    SSL_CTX_set_verify(context, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, NULL);
    SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);
    SSL_CTX_set_num_tickets(context, 0);
    return context;
}

static int step(SSL *ssl, long long *spent) {
    long long before = cpu();
    int result = SSL_do_handshake(ssl);
    *spent += cpu() - before;
    must(result == 1 || SSL_get_error(ssl, result) == SSL_ERROR_WANT_READ, "handshake");
    return result == 1;
}

static void handshake(SSL_CTX *clients, SSL_CTX *servers, long long *client_spent, long long *server_spent) {
    BIO *near, *far;
    long long before = cpu();
    SSL *client = SSL_new(clients);
    *client_spent += cpu() - before;
    before = cpu();
    SSL *server = SSL_new(servers);
    *server_spent += cpu() - before;
    must(BIO_new_bio_pair(&near, 65536, &far, 65536), "pair");
    SSL_set_bio(client, near, near);
    SSL_set_bio(server, far, far);
    SSL_set_connect_state(client);
    SSL_set_accept_state(server);
    int done = 0;
    while (done != 3) {
        done = 0;
        if (step(client, client_spent)) done |= 1;
        if (step(server, server_spent)) done |= 2;
    }
    SSL_free(client);
    SSL_free(server);
}

static X509 *certificate(const char *directory, const char *name) {
    BIO *bio = BIO_new_file(file(directory, name), "r");
    X509 *read = PEM_read_bio_X509(bio, NULL, NULL, NULL);
    must(read != NULL, name);
    BIO_free(bio);
    return read;
}

/* From DER to verdict, as a handshake has it: nothing is kept from the run before. */
static void verify(X509_STORE *store, const unsigned char *leaf, int leaf_length, const unsigned char *issuer, int issuer_length) {
    X509 *first = d2i_X509(NULL, &leaf, leaf_length);
    STACK_OF(X509) *rest = sk_X509_new_null();
    sk_X509_push(rest, d2i_X509(NULL, &issuer, issuer_length));
    X509_STORE_CTX *ctx = X509_STORE_CTX_new();
    must(X509_STORE_CTX_init(ctx, store, first, rest), "context");
    X509_STORE_CTX_set_default(ctx, "ssl_client");
    must(X509_verify_cert(ctx), "verify");
    X509_STORE_CTX_free(ctx);
    sk_X509_pop_free(rest, X509_free);
    X509_free(first);
}

int main(int argc, char **argv) {
    must(argc == 3, "usage: openssl DIRECTORY COUNT");
    int count = atoi(argv[2]);
    SSL_CTX *clients = context(TLS_client_method(), argv[1]);
    SSL_CTX *servers = context(TLS_server_method(), argv[1]);
    long long client = 0, server = 0, ignored = 0;
    for (int i = 0; i < count / 10; i++) handshake(clients, servers, &ignored, &ignored);
    for (int i = 0; i < count; i++) handshake(clients, servers, &client, &server);

    X509_STORE *store = X509_STORE_new();
    X509_STORE_add_cert(store, certificate(argv[1], "root.pem"));
    unsigned char *leaf = NULL, *issuer = NULL;
    int leaf_length = i2d_X509(certificate(argv[1], "chain.pem"), &leaf);
    int issuer_length = i2d_X509(certificate(argv[1], "issuer.pem"), &issuer);
    long long before = cpu();
    for (int i = 0; i < count; i++) verify(store, leaf, leaf_length, issuer, issuer_length);
    printf("%lld %lld %lld\n", client / count, server / count, (cpu() - before) / count);
    return 0;
}
