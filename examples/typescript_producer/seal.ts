import { createCipheriv, createHash, randomBytes } from "node:crypto";

const key = Buffer.from(process.env.ENCRYPTION_KEY!, "base64");
const keyId = createHash("sha256").update("oxherd key id\0").update(key).digest("hex").slice(0, 8);

/** Seals a value for one field of one kind of job. `path` is the way to the field: names, and places in lists. */
export function seal(value: unknown, job: string, tenant: string, path: string[]) {
  const nonce = randomBytes(12);
  const cipher = createCipheriv("aes-256-gcm", key, nonce);
  cipher.setAAD(Buffer.from(["oxherd/payload", tenant, job, ...path].join("\0")));
  const text = Buffer.concat([cipher.update(JSON.stringify(value)), cipher.final()]);
  const sealed = Buffer.concat([nonce, text, cipher.getAuthTag()]);
  return { $sealed: `oxherd1.${keyId}.${sealed.length}.${sealed.toString("base64url")}` };
}
