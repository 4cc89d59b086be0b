"""A page that is no browser: watches and controls a live desktop with another implementation of WebRTC.

The first line of standard input is a JSON object: `origin` and `token` of the service, and `session`. Each further line
is an order, an object with `do` and what belongs to it; each is answered by one line on standard output, an object with
what was seen, or with `error`. The end of standard input ends the connection.
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

CONNECTED_S = 60.0
# A picture is still when nothing but a caret and the encoder's noise changed for so long.
STILL_S = 0.8
# More pixels than a caret has, fewer than a letter; and by how much brightness they differ.
CARET_PX = 80
NOISE = 24

MOVE, BUTTON, KEY, TEXT = 0x31, 0x32, 0x34, 0x35
KEYS = {"Control": (0xFFE3, "ControlLeft"), "l": (0x6C, "KeyL"), "Enter": (0xFF0D, "Enter"), "End": (0xFF57, "End")}


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
        # The picture when it last changed, and when that was.
        self.settled = None
        self.settled_at = None
        self.news = asyncio.Event()
        self.input = pc.createDataChannel("input")
        self.moves = pc.createDataChannel("moves", ordered=False, maxRetransmits=0)
        self.input.on("message", self.heard)
        pc.addTransceiver("video", direction="recvonly")
        pc.on("track", lambda track: asyncio.ensure_future(self.watch(track)))
        for source in (pc, self.input, self.moves):
            for event in ("connectionstatechange", "open"):
                source.on(event, self.news.set)

    def heard(self, message):
        if isinstance(message, str):
            self.words.append(json.loads(message))
        else:
            self.cursors += 1
        self.news.set()

    async def watch(self, track):
        try:
            while True:
                frame = await track.recv()
                # Brightness alone: rows of it come first in the planar format.
                self.picture = frame.to_ndarray(format="gray").astype(numpy.int16)
                self.frames += 1
                if self.first_frame_ms is None:
                    self.first_frame_ms = (time.monotonic() - self.begun) * 1000
                if changed(self.settled, self.picture) > CARET_PX:
                    self.settled, self.settled_at = self.picture, time.monotonic()
                self.news.set()
        except MediaStreamError:
            pass

    async def until(self, what, wanted, seconds, again_s=1.0):
        """Waits until `wanted`, which is asked whenever something has come, and also without that."""
        end = time.monotonic() + seconds
        while not wanted():
            if time.monotonic() > end:
                raise TimeoutError(f"{what}: not within {seconds} s. {self.figures()}")
            self.news.clear()
            try:
                await asyncio.wait_for(self.news.wait(), again_s)
            except TimeoutError:
                pass

    def said(self, kind):
        return next((word for word in reversed(self.words) if word["type"] == kind), None)

    def figures(self):
        height, width = (0, 0) if self.picture is None else self.picture.shape
        return {
            "connection": self.pc.connectionState,
            "channels": {channel.label: channel.readyState for channel in (self.input, self.moves)},
            "firstFrameMs": self.first_frame_ms and round(self.first_frame_ms),
            "frames": self.frames,
            "width": width,
            "height": height,
            "white": 0 if self.picture is None else int((self.picture > 246).sum()),
            "words": len(self.words),
            "cursors": self.cursors,
            "size": self.said("size"),
            "hello": self.said("hello"),
            "refused": self.said("refused"),
        }

    def move(self, x, y):
        self.moves.send(struct.pack(">BHH", MOVE, x, y))

    def click(self, x, y):
        for down in (1, 0):
            self.input.send(struct.pack(">BBBHH", BUTTON, 1, down, x, y))

    def press(self, names):
        keys = [KEYS[name] for name in names]
        for down, order in ((1, keys), (0, keys[::-1])):
            for keysym, code in order:
                self.input.send(struct.pack(">BBI", KEY, down, keysym) + code.encode())

    def type(self, text):
        self.input.send(bytes([TEXT]) + text.encode())

    async def obey(self, order):
        """Does what one line says."""
        seconds = order.get("seconds", 0)
        match order["do"]:
            case "look":
                pass
            case "still":
                # Frames come as long as there is a connection, changed or not: without new ones nothing is known.
                since, frames = time.monotonic(), self.frames
                settled = lambda: self.settled_at is not None and time.monotonic() - max(self.settled_at, since) > STILL_S
                await self.until("the picture is still", lambda: settled() and self.frames > frames, seconds, again_s=0.1)
            case "press":
                self.press(order["keys"])
            case "type":
                self.type(order["text"])
            case "click":
                height, width = self.picture.shape
                x, y = int(order["x"] * width), int(order["y"] * height)
                self.move(x, y)
                self.click(x, y)
            case "typeAndSee":
                before = self.picture
                self.type(order["text"])
                await self.until("what was typed shows", lambda: changed(before, self.picture) > CARET_PX, seconds)
                return self.figures() | {"changed": changed(before, self.picture)}
        return self.figures()


def changed(before, after):
    """Pixels that are clearly other ones."""
    if before is None or before.shape != after.shape:
        return after.size
    return int((numpy.abs(after - before) > NOISE).sum())


def post(wish, body):
    request = urllib.request.Request(
        f"{wish['origin']}/api/webrtc/session/{wish['session']}/offer",
        data=json.dumps(body).encode(),
        headers={"authorization": f"Bearer {wish['token']}", "content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=CONNECTED_S) as answer:
        return json.load(answer)


async def connect(wish, desktop):
    pc = desktop.pc
    await pc.setLocalDescription(await pc.createOffer())
    desktop.begun = time.monotonic()
    answer = await asyncio.to_thread(post, wish, {"sdp": pc.localDescription.sdp})
    await pc.setRemoteDescription(RTCSessionDescription(**{key: answer["answer"][key] for key in ("sdp", "type")}))
    open_ = lambda: desktop.input.readyState == desktop.moves.readyState == "open"
    await desktop.until("it is connected", lambda: pc.connectionState == "connected" and open_(), CONNECTED_S)
    await desktop.until("it is greeted", lambda: desktop.said("hello") is not None, CONNECTED_S)
    await desktop.until("a picture is decoded", lambda: desktop.picture is not None, CONNECTED_S)


async def main():
    line = lambda: asyncio.to_thread(sys.stdin.readline)
    say = lambda what: print(json.dumps(what), flush=True)
    desktop = Desktop(RTCPeerConnection(RTCConfiguration(iceServers=[])))
    try:
        await connect(json.loads(await line()), desktop)
        say(desktop.figures())
        while order := await line():
            try:
                say(await desktop.obey(json.loads(order)))
            except TimeoutError as error:
                say({"error": str(error)})
    finally:
        await desktop.pc.close()


if __name__ == "__main__":
    asyncio.run(main())
