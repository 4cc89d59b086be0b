"""A page that is no browser: watches and controls a live desktop with another implementation of WebRTC.

Reads one JSON object from standard input: `origin` and `token` of the service, `session`, and `text`, `secret` to type
into the form that is open in the desktop. Writes one JSON object with what it saw to standard output. Ends with status 1
and the reason on standard error if something does not happen in time.
"""

import asyncio
import json
import struct
import sys
import time
import urllib.request

import numpy
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError

DEADLINE_S = 60.0
LOOK_AGAIN_S = 0.05
# A picture is still when nothing but noise of the encoder changed for so long.
STILL_S = 0.8
# Share of pixels that differ by more than noise when something happened.
CHANGED = 0.0005
NOISE = 24

MOVE, BUTTON, KEY, TEXT = 0x31, 0x32, 0x34, 0x35
TAB = (0xFF09, "Tab")
ENTER = (0xFF0D, "Enter")


class Desktop:
    """One connection to the desktop."""

    def __init__(self, pc):
        self.pc = pc
        self.begun = time.monotonic()
        self.words = []
        self.cursors = 0
        self.frames = 0
        self.first_frame_ms = None
        self.picture = None
        self.changed_at = time.monotonic()
        self.input = pc.createDataChannel("input")
        self.moves = pc.createDataChannel("moves", ordered=False, maxRetransmits=0)
        self.input.on("message", self.heard)
        pc.addTransceiver("video", direction="recvonly")
        pc.on("track", lambda track: asyncio.ensure_future(self.watch(track)))

    def heard(self, message):
        if isinstance(message, str):
            self.words.append(json.loads(message))
        else:
            self.cursors += 1

    async def watch(self, track):
        try:
            while True:
                frame = await track.recv()
                # Brightness alone: rows of it come first in the planar format.
                picture = frame.to_ndarray(format="gray").astype(numpy.int16)
                self.frames += 1
                if self.first_frame_ms is None:
                    self.first_frame_ms = (time.monotonic() - self.begun) * 1000
                if difference(self.picture, picture) > CHANGED:
                    self.changed_at = time.monotonic()
                self.picture = picture
        except MediaStreamError:
            pass

    async def until(self, what, wanted):
        end = time.monotonic() + DEADLINE_S
        while not wanted():
            if time.monotonic() > end:
                raise TimeoutError(f"waited in vain until {what}; {self.frames} frames, {self.pc.connectionState}")
            await asyncio.sleep(LOOK_AGAIN_S)

    async def still(self):
        await self.until(
            "the picture is still",
            lambda: self.picture is not None and time.monotonic() - self.changed_at > STILL_S,
        )
        return self.picture

    async def changed_from(self, before, what):
        await self.until(what, lambda: difference(before, self.picture) > CHANGED)
        return difference(before, self.picture)

    def move(self, x, y):
        self.moves.send(struct.pack(">BHH", MOVE, x, y))

    def click(self, x, y):
        for down in (1, 0):
            self.input.send(struct.pack(">BBBHH", BUTTON, 1, down, x, y))

    def press(self, key):
        keysym, code = key
        for down in (1, 0):
            self.input.send(struct.pack(">BBI", KEY, down, keysym) + code.encode())

    def type(self, text):
        self.input.send(bytes([TEXT]) + text.encode())

    def said(self, kind):
        return next((word for word in reversed(self.words) if word["type"] == kind), None)


def difference(before, after):
    """Share of pixels that are clearly other ones."""
    if before is None or before.shape != after.shape:
        return 1.0
    return float((numpy.abs(after - before) > NOISE).mean())


def post(wish, body):
    request = urllib.request.Request(
        f"{wish['origin']}/api/webrtc/session/{wish['session']}/offer",
        data=json.dumps(body).encode(),
        headers={"authorization": f"Bearer {wish['token']}", "content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.load(answer)


async def main(wish):
    pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    try:
        desktop = Desktop(pc)
        await pc.setLocalDescription(await pc.createOffer())
        desktop.begun = time.monotonic()
        answer = await asyncio.to_thread(post, wish, {"sdp": pc.localDescription.sdp})
        await pc.setRemoteDescription(RTCSessionDescription(**{k: answer["answer"][k] for k in ("sdp", "type")}))
        await desktop.until("it is connected", lambda: pc.connectionState == "connected")
        connected_ms = (time.monotonic() - desktop.begun) * 1000
        await desktop.until("it is greeted", lambda: desktop.said("hello") is not None)
        await desktop.until("a picture is decoded", lambda: desktop.picture is not None)
        before = await desktop.still()
        height, width = before.shape
        desktop.move(width // 2, height // 3)
        desktop.type(wish["text"])
        typing = await desktop.changed_from(before, "what was typed shows")
        desktop.press(TAB)
        desktop.type(wish["secret"])
        before = await desktop.still()
        desktop.press(ENTER)
        entering = await desktop.changed_from(before, "the form was sent")
        stats = await pc.getStats()
        received = [s for s in stats.values() if s.type == "inbound-rtp"]
        return {
            "connectedMs": round(connected_ms),
            "firstFrameMs": round(desktop.first_frame_ms),
            "frames": desktop.frames,
            "width": width,
            "height": height,
            "mean": float(desktop.picture.mean()),
            "hello": desktop.said("hello"),
            "cursors": desktop.cursors,
            "typingChanged": typing,
            "enteringChanged": entering,
            "packetsLost": sum(s.packetsLost for s in received),
        }
    finally:
        await pc.close()


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(json.load(sys.stdin)))))
