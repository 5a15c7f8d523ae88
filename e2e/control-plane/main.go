// The programs of a Kubernetes cluster, and of those who use it, in one file: unmodified, chosen by the name under which
// it is called (etcd, kube-apiserver, kube-controller-manager, kubectl, coredns), as busybox does. One file, because
// nearly all of each is the same: apart they would be five times as large and take twice as long to build.
package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/coremain"
	_ "github.com/coredns/coredns/plugin/bind"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/etcdmain"
	"k8s.io/component-base/cli"
	kubectl "k8s.io/kubectl/pkg/cmd"
	"k8s.io/kubectl/pkg/cmd/util"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllers "k8s.io/kubernetes/cmd/kube-controller-manager/app"
)

// The order in which CoreDNS asks its plugins; only those that are built in.
var plugins = []string{"bind", "errors", "kubernetes"}

func main() {
	switch name := filepath.Base(os.Args[0]); name {
	case "etcd":
		etcdmain.Main(os.Args)
	case "kube-apiserver":
		run(apiserver.NewAPIServerCommand())
	case "kube-controller-manager":
		run(controllers.NewControllerManagerCommand())
	case "kubectl":
		util.CheckErr(cli.RunNoErrOutput(kubectl.NewDefaultKubectlCommand()))
	case "coredns":
		dnsserver.Directives = plugins
		coremain.Run()
	default:
		fmt.Fprintf(os.Stderr, "there is no program %q in this file: call it as etcd, kube-apiserver, "+
			"kube-controller-manager, kubectl or coredns\n", name)
		os.Exit(2)
	}
}

func run(command *cobra.Command) {
	os.Exit(cli.Run(command))
}
