// Mistakes that the types must find. tsc complains about a line below that has none.
import { client } from "./login.js";

export async function mistakes(): Promise<void> {
  // @ts-expect-error: there is no such operation.
  await client.POST("/api/v1/auth/second-leg", {});
  // @ts-expect-error: the second leg needs the token of the first one.
  await client.POST("/api/v1/auth/mfa", { body: { code: "123456" } });
  // @ts-expect-error: a number would lose its leading zeros.
  await client.POST("/api/v1/auth/mfa", { body: { mfa_token: "mt1.x", code: 12345 } });
  // @ts-expect-error: the first leg needs a password.
  await client.POST("/api/v1/auth/token", { body: { grant_type: "password", username: "ada@example.com" } });
  const { data, error } = await client.POST("/api/v1/auth/mfa", { body: { mfa_token: "mt1.x", code: "123456" } });
  // @ts-expect-error: without a look at `data`, there may be no tokens.
  data.access_token;
  // @ts-expect-error: errors have no such member.
  error?.access_token;
  // @ts-expect-error: only an answer with the code mfa_required has the token.
  error?.mfa_token.length;
}
