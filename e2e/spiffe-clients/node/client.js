// A workload that speaks to the Workload API with nothing but @grpc/grpc-js and the standard's proto: one line for each
// certificate that it is given.
const { X509Certificate } = require("node:crypto");
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

const definition = loader.loadSync(process.argv[2], { keepCase: true, includeDirs: process.argv.slice(3) });
const { SpiffeWorkloadAPI } = grpc.loadPackageDefinition(definition);
const client = new SpiffeWorkloadAPI(process.env.SPIFFE_ENDPOINT_SOCKET, grpc.credentials.createInsecure());
const metadata = new grpc.Metadata();
metadata.set("workload.spiffe.io", "true");

const stream = client.FetchX509SVID({}, metadata);
stream.on("data", (message) => {
  const svid = message.svids[0];
  // The leaf is first; what follows it is not read.
  const length = svid.x509_svid.readUInt16BE(2) + 4;
  const leaf = new X509Certificate(svid.x509_svid.subarray(0, length));
  console.log("serial", leaf.serialNumber.toLowerCase(), svid.spiffe_id);
});
stream.on("error", (error) => {
  console.error("watch:", error.message);
  process.exit(1);
});
setTimeout(() => process.exit(0), 180000);
