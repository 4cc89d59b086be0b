// What a decoder has to know of an H.264 stream (ITU-T H.264, 7.3.2.1.1 and annex B).

/** Codec of a keyframe by its sequence parameter set, as WebCodecs names it; null without one. */
export function codecOf(data: Uint8Array): string | null {
  const SPS = 7;
  for (let at = 0; at + 6 < data.length; at += 1) {
    if (data[at] !== 0 || data[at + 1] !== 0 || data[at + 2] !== 1) continue;
    if (((data[at + 3] ?? 0) & 0x1f) !== SPS) continue;
    const hex = [...data.subarray(at + 4, at + 7)].map((byte) => byte.toString(16).padStart(2, "0"));
    return hex.length === 3 ? `avc1.${hex.join("")}` : null;
  }
  return null;
}
