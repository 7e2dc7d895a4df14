// An OAuth2 server for the tests: signs and introspects tokens of clients, revokes them, and publishes its keys.
//
//   node server.mjs PORT ALGORITHM     prints "ready" when it listens
import { generateKeyPairSync } from "node:crypto";
import { Provider } from "oidc-provider";

const [port, algorithm] = process.argv.slice(2);
const issuer = `http://127.0.0.1:${port}`;
const pair = algorithm === "ES256"
  ? generateKeyPairSync("ec", { namedCurve: "P-256" })
  : generateKeyPairSync("rsa", { modulusLength: 2048 });
const key = { ...pair.privateKey.export({ format: "jwk" }), use: "sig", alg: algorithm };

const client = (id) => ({
  client_id: id, client_secret: `${id}-secret`, id_token_signed_response_alg: algorithm, grant_types: ["client_credentials"], redirect_uris: [], response_types: [],
});

const provider = new Provider(issuer, {
  jwks: { keys: [key] },
  clients: [client("Alice"), client("bob"), client("gateway")],
  scopes: ["trader"],
  features: {
    devInteractions: { enabled: false },
    clientCredentials: { enabled: true },
    introspection: { enabled: true, allowedPolicy: async () => true },
    revocation: { enabled: true },
    resourceIndicators: {
      enabled: true,
      getResourceServerInfo: async (ctx, resource) => ({
        scope: "trader",
        audience: resource,
        accessTokenTTL: 600,
        accessTokenFormat: resource.endsWith("/jwt") ? "jwt" : "opaque",
        jwt: { sign: { alg: algorithm } },
      }),
    },
  },
  extraTokenClaims: async () => ({ pairs: ["btc_*"] }),
});
provider.listen(Number(port), "127.0.0.1", () => console.log("ready"));
