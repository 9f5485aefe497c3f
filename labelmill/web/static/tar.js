// Write a TAR archive (POSIX.1-2001, "pax") as pieces of a Blob: headers, and the files themselves, which are read
// only when the archive is sent.
"use strict";

const TAR_BLOCK = 512;

/** Return the pieces of an archive of these files, each with its path: [{ path, file }]. */
function tarPieces(entries) {
  const pieces = [];
  for (const { path, file } of entries) {
    const name = new TextEncoder().encode(path);
    if (name.length > 100 || name.length !== path.length) { // too long for a header, or not ASCII
      const record = paxRecord("path", path);
      pieces.push(tarHeader(new TextEncoder().encode("pax"), record.length, "x"), record, padding(record.length));
    }
    pieces.push(tarHeader(name.slice(0, 100), file.size, "0"), file, padding(file.size));
  }
  pieces.push(new Uint8Array(2 * TAR_BLOCK));
  return pieces;
}

function padding(size) {
  return new Uint8Array((TAR_BLOCK - (size % TAR_BLOCK)) % TAR_BLOCK);
}

/** Return "LENGTH key=value\n", where LENGTH counts its own digits, too. */
function paxRecord(key, value) {
  const rest = new TextEncoder().encode(` ${key}=${value}\n`);
  let length = rest.length;
  while (length !== rest.length + String(length).length) length = rest.length + String(length).length;
  const record = new Uint8Array(length);
  record.set(new TextEncoder().encode(String(length)));
  record.set(rest, length - rest.length);
  return record;
}

function tarHeader(name, size, type) {
  const header = new Uint8Array(TAR_BLOCK);
  const write = (place, text) => header.set(new TextEncoder().encode(text), place);
  const octal = (number, digits) => number.toString(8).padStart(digits, "0");
  header.set(name);
  write(100, "0000644\0");
  write(108, "0000000\0");
  write(116, "0000000\0");
  write(124, size < 8 ** 11 ? `${octal(size, 11)}\0` : "");
  write(136, "00000000000\0");
  write(148, "        "); // the checksum counts as spaces
  write(156, type);
  write(257, "ustar\x0000");
  write(148, `${octal(header.reduce((sum, byte) => sum + byte, 0), 6)}\0 `);
  return header;
}
