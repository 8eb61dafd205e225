// A program that knows nothing of second factors. It shows the error of a failed login.
import createClient from "openapi-fetch";
import type { paths } from "./api.js";

declare const process: { argv: string[]; env: Record<string, string>; exitCode: number };

const client = createClient<paths>({ baseUrl: process.env.API ?? "" });
const [, , username = "", password = ""] = process.argv;

const { data, error } = await client.POST("/api/v1/auth/token", {
  body: { grant_type: "password", username, password },
  headers: { "Content-Type": "application/x-www-form-urlencoded" },
});
if (data) {
  console.log(`logged in for ${data.expires_in} s`);
} else {
  console.log(`${error.error}: ${error.error_description}`);
  process.exitCode = 1;
}
