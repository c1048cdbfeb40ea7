// What the scripts share. Each prints a line for each call; run.py has the lines that it expects.

export const url = process.env.SHINKEI_URL as string;
export const admin = {
  email: process.env.ADMIN_EMAIL as string,
  password: process.env.ADMIN_PASSWORD as string,
};
export const credentials = {
  email: `${process.env.CLIENT}@example.com`,
  password: "a passphrase of the client's",
};

/** Return the value. Does not compile if its type is any. */
export function typed<T>(value: 0 extends 1 & T ? never : T): T {
  return value;
}

export function report(operation: string, result: string): void {
  console.log(`${operation}: ${result}`);
}

export function check(condition: boolean, what: string): void {
  if (!condition) throw new Error(what);
}
