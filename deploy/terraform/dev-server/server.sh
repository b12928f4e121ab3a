# The command of the dev-server. Secrets go to files, so that no process argument shows them.
umask 077
grpc='ports { grpc = 8502 }'
cd /consul/data
rm -rf config tls
mkdir config tls
if [ -n "$CONSUL_GOSSIP_KEY" ]; then
  printf '{"encrypt": "%s"}' "$CONSUL_GOSSIP_KEY" > config/gossip.json
fi
if [ -n "$CONSUL_BOOTSTRAP_TOKEN" ]; then
  printf '{"acl": {"enabled": true, "default_policy": "deny", "tokens": {"initial_management": "%s", "agent": "%s"}}}' \
    "$CONSUL_BOOTSTRAP_TOKEN" "$CONSUL_BOOTSTRAP_TOKEN" > config/acl.json
fi
if [ -n "$CONSUL_CACERT_PEM" ]; then
  cd tls
  # Then gRPC is on 8503, by default.
  grpc=
  printf '%s\n' "$CONSUL_CACERT_PEM" > ca.pem
  printf '%s\n' "$CONSUL_CAKEY_PEM" > ca.key
  consul tls cert create -server -dc="$DATACENTER" -additional-dnsname="$SERVER_NAME" -ca=ca.pem -key=ca.key
  rm ca.key
  mv "$DATACENTER-server-consul-0.pem" server.pem
  mv "$DATACENTER-server-consul-0-key.pem" server.key
  printf '{"tls": {"defaults": {"ca_file": "%s/ca.pem", "cert_file": "%s/server.pem", "key_file": "%s/server.key",
    "verify_outgoing": true}, "internal_rpc": {"verify_incoming": true, "verify_server_hostname": true}},
    "auto_encrypt": {"allow_tls": true}, "ports": {"http": -1, "https": 8501}}' "$PWD" "$PWD" "$PWD" > ../config/tls.json
fi
unset CONSUL_GOSSIP_KEY CONSUL_BOOTSTRAP_TOKEN CONSUL_CACERT_PEM CONSUL_CAKEY_PEM
exec consul agent -server -bootstrap -ui -datacenter="$DATACENTER" -bind='{{ GetPrivateIP }}' -client=0.0.0.0 \
  -data-dir=/consul/data -config-dir=/consul/data/config -hcl="connect { enabled = true } $grpc"
