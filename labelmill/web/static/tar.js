// Write the archive that `labelmill submit` sends, too: TAR (POSIX.1-2001, "pax"), as pieces of a Blob: headers, and
// the files themselves, which are read only when the archive is sent.
"use strict";

const TAR_BLOCK = 512;
const TAR_MAX_SIZE = 8 ** 11; // a header has room for eleven octal digits
const TAR_MARK = ".labelmill-images"; // the first member: the others are images, under their own names

/** Return the pieces of an archive of these files, each with its path: [{ path, file }]. */
function tarPieces(entries) {
  const pieces = [tarHeader(TAR_MARK, 0, "0")];
  for (const { path, file } of entries) {
    let record = "";
    if (path.length > 100 || !/^[\x20-\x7e]*$/.test(path)) record += paxRecord("path", path);
    if (file.size >= TAR_MAX_SIZE) record += paxRecord("size", file.size);
    if (record) {
      const bytes = new TextEncoder().encode(record);
      pieces.push(tarHeader("pax", bytes.length, "x"), bytes, tarPadding(bytes.length));
    }
    pieces.push(tarHeader(path, file.size, "0"), file, tarPadding(file.size));
  }
  pieces.push(new Uint8Array(2 * TAR_BLOCK));
  return pieces;
}

/** Return "LENGTH key=value\n", where LENGTH counts the bytes of the whole record, its own digits included. */
function paxRecord(key, value) {
  const rest = ` ${key}=${value}\n`;
  const bytes = new TextEncoder().encode(rest).length;
  let length = bytes;
  while (length !== bytes + String(length).length) length = bytes + String(length).length;
  return length + rest;
}

function tarHeader(path, size, type) {
  const header = new Uint8Array(TAR_BLOCK);
  const write = (place, text) => header.set(new TextEncoder().encode(text), place);
  const octal = (number, digits) => number.toString(8).padStart(digits, "0");
  header.set(new TextEncoder().encode(path).slice(0, 100));
  write(100, "0000644\0");
  write(108, "0000000\0");
  write(116, "0000000\0");
  write(124, `${octal(size < TAR_MAX_SIZE ? size : 0, 11)}\0`);
  write(136, "00000000000\0");
  write(148, "        "); // the checksum counts as spaces
  write(156, type);
  write(257, "ustar\x0000");
  write(148, `${octal(header.reduce((sum, byte) => sum + byte, 0), 6)}\0 `);
  return header;
}

function tarPadding(size) {
  return new Uint8Array((TAR_BLOCK - (size % TAR_BLOCK)) % TAR_BLOCK);
}
