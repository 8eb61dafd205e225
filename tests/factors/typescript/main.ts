// Logs in with the function of docs/second-factor.md, and prints what the person sees, and how many requests it took.
import { client, logIn } from "./login.js";

declare const process: { argv: string[]; exitCode: number };

const [, , email = "", password = "", code = ""] = process.argv;
let requests = 0;
client.use({ onRequest: () => void requests++ });

try {
  const tokens = await logIn(email, password, async (methods) => {
    console.log(`asked for ${methods.join(" or ")}`);
    return code;
  });
  const { data } = await client.GET("/api/v1/users/me", {
    headers: { Authorization: `Bearer ${tokens.access_token}` },
  });
  console.log(`logged in as ${data?.email} after ${requests - 1}`);
} catch (error) {
  console.log(`refused after ${requests}: ${error instanceof Error ? error.message : error}`);
  process.exitCode = 1;
}
