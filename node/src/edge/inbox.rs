//! WebSocket frames from a client (RFC 6455 §5): bytes in, messages out, no I/O.
//!
//! The parser is written here because of memory: it reads from whatever buffer the shard has just filled and keeps of a
//! message only the bytes that have come, so that an idle connection holds no buffer at all, and one that once
//! sent a large request does not keep its size for ever. What a frame claims to be long claims no memory.

use std::mem;

use tickmesh_protocol::client::{CloseCode, MAX_CLIENT_FRAME_BYTES};

use super::frame::MAX_CONTROL_PAYLOAD_BYTES;

/// Longest header of a masked frame, in bytes.
const MAX_HEADER_BYTES: usize = 14;

const CONTINUATION: u8 = 0x0;
const TEXT: u8 = 0x1;
const BINARY: u8 = 0x2;
const CLOSE: u8 = 0x8;
const PING: u8 = 0x9;
const PONG: u8 = 0xA;

/// One message or control frame of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Incoming {
    Text(String),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong,
    /// The code, if there was one.
    Close(Option<u16>),
}

/// Why the bytes of a client are no WebSocket frames, or not ones to be taken. The connection must end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidFrame {
    #[error("reserved bits are set without an extension")]
    ReservedBits,
    #[error("no opcode {0:#x}")]
    Opcode(u8),
    #[error("a client must mask its frames")]
    Unmasked,
    #[error("a control frame must be whole and at most 125 bytes")]
    ControlFrame,
    #[error("a continuation without a beginning")]
    UnexpectedContinuation,
    #[error("a new message inside of a fragmented one")]
    ExpectedContinuation,
    #[error("a message has at most {MAX_CLIENT_FRAME_BYTES} bytes")]
    TooBig,
    #[error("a text message must be UTF-8")]
    NotUtf8,
    #[error("a close frame holds nothing, or a valid code and UTF-8")]
    CloseFrame,
}

impl InvalidFrame {
    pub fn close_code(&self) -> CloseCode {
        match self {
            Self::TooBig => CloseCode::TooBig,
            Self::NotUtf8 => CloseCode::NotUtf8,
            _ => CloseCode::Protocol,
        }
    }
}

/// Parses one client's bytes.
#[derive(Debug, Default)]
pub struct Inbox {
    header: [u8; MAX_HEADER_BYTES],
    header_bytes: usize,
    frame: Option<Frame>,
    /// Payload of the control frame that is being read.
    control: Vec<u8>,
    /// The data message that is being read, over all its fragments, if one is.
    message: Option<Message>,
}

#[derive(Debug)]
struct Frame {
    opcode: u8,
    is_final: bool,
    mask: [u8; 4],
    length: usize,
    /// Payload bytes taken so far.
    taken: usize,
}

#[derive(Debug)]
struct Message {
    is_text: bool,
    bytes: Vec<u8>,
    /// Bytes of a text that are known to be UTF-8.
    checked: usize,
}

impl Message {
    /// Refuses a text that nothing could make UTF-8 any more, whatever else comes.
    fn check(&mut self) -> Result<(), InvalidFrame> {
        if !self.is_text {
            return Ok(());
        }
        match str::from_utf8(&self.bytes[self.checked..]) {
            Ok(_) => self.checked = self.bytes.len(),
            // Its last character is not complete.
            Err(error) if error.error_len().is_none() => self.checked += error.valid_up_to(),
            Err(_) => return Err(InvalidFrame::NotUtf8),
        }
        Ok(())
    }
}

impl Inbox {
    /// Takes bytes from the front of `input` up to the end of the next message, and unmasks them in place. `None`: all
    /// of them were taken, and the next message is not complete.
    ///
    /// # Errors
    /// After one, nothing that this client sends can be understood any more.
    pub fn next(&mut self, input: &mut &mut [u8]) -> Result<Option<Incoming>, InvalidFrame> {
        loop {
            let mut frame = match self.frame.take() {
                Some(frame) => frame,
                None => match self.read_header(input)? {
                    Some(frame) => frame,
                    None => return Ok(None),
                },
            };
            let whole = self.read_payload(&mut frame, input);
            if !whole {
                self.check_begun()?;
                self.frame = Some(frame);
                return Ok(None);
            }
            if let Some(incoming) = self.finish(&frame)? {
                return Ok(Some(incoming));
            }
        }
    }

    fn read_header(&mut self, input: &mut &mut [u8]) -> Result<Option<Frame>, InvalidFrame> {
        loop {
            let wanted = match self.header_bytes {
                0 | 1 => 2,
                _ => {
                    self.check_header()?;
                    header_bytes(self.header[1])
                }
            };
            if self.header_bytes == wanted {
                break;
            }
            let Some(taken) = take(input, wanted - self.header_bytes) else {
                return Ok(None);
            };
            self.header[self.header_bytes..self.header_bytes + taken.len()].copy_from_slice(taken);
            self.header_bytes += taken.len();
        }
        let wanted = mem::take(&mut self.header_bytes);
        let [first, second, rest @ ..] = self.header;
        let length = match second & 0x7F {
            126 => u64::from(u16::from_be_bytes([rest[0], rest[1]])),
            127 => {
                u64::from_be_bytes([rest[0], rest[1], rest[2], rest[3], rest[4], rest[5], rest[6], rest[7]])
            }
            short => u64::from(short),
        };
        let mut mask = [0; 4];
        mask.copy_from_slice(&self.header[wanted - 4..wanted]);
        let (opcode, is_final) = (first & 0x0F, first & 0x80 != 0);
        let length = self.begin(opcode, length)?;
        Ok(Some(Frame { opcode, is_final, mask, length, taken: 0 }))
    }

    /// Refuses what the first two bytes of a header already show to be wrong.
    fn check_header(&self) -> Result<(), InvalidFrame> {
        let [first, second, ..] = self.header;
        let (opcode, is_final, length) = (first & 0x0F, first & 0x80 != 0, usize::from(second & 0x7F));
        if first & 0x70 != 0 {
            return Err(InvalidFrame::ReservedBits);
        }
        if second & 0x80 == 0 {
            return Err(InvalidFrame::Unmasked);
        }
        match opcode {
            CONTINUATION if self.message.is_none() => Err(InvalidFrame::UnexpectedContinuation),
            TEXT | BINARY if self.message.is_some() => Err(InvalidFrame::ExpectedContinuation),
            CLOSE | PING | PONG if !is_final || length > MAX_CONTROL_PAYLOAD_BYTES => {
                Err(InvalidFrame::ControlFrame)
            }
            CONTINUATION | TEXT | BINARY | CLOSE | PING | PONG => Ok(()),
            _ => Err(InvalidFrame::Opcode(opcode)),
        }
    }

    fn begin(&mut self, opcode: u8, length: u64) -> Result<usize, InvalidFrame> {
        if matches!(opcode, TEXT | BINARY) {
            self.message = Some(Message { is_text: opcode == TEXT, bytes: Vec::new(), checked: 0 });
        }
        let room = MAX_CLIENT_FRAME_BYTES - self.message.as_ref().map_or(0, |message| message.bytes.len());
        // A control frame is at most 125 bytes long, as checked; it may stand between the fragments of a message.
        usize::try_from(length)
            .ok()
            .filter(|length| *length <= room || opcode >= CLOSE)
            .ok_or(InvalidFrame::TooBig)
    }

    /// Whether the payload is complete now.
    fn read_payload(&mut self, frame: &mut Frame, input: &mut &mut [u8]) -> bool {
        let Some(payload) = take(input, frame.length - frame.taken) else {
            return frame.taken == frame.length;
        };
        for (index, byte) in payload.iter_mut().enumerate() {
            *byte ^= frame.mask[(frame.taken + index) % 4];
        }
        frame.taken += payload.len();
        if frame.opcode >= CLOSE {
            self.control.extend_from_slice(payload);
        } else if let Some(message) = &mut self.message {
            message.bytes.extend_from_slice(payload);
        }
        frame.taken == frame.length
    }

    /// A message that is complete is checked as a whole; until then, what has come of it.
    fn check_begun(&mut self) -> Result<(), InvalidFrame> {
        self.message.as_mut().map_or(Ok(()), Message::check)
    }

    fn finish(&mut self, frame: &Frame) -> Result<Option<Incoming>, InvalidFrame> {
        match frame.opcode {
            PING => Ok(Some(Incoming::Ping(mem::take(&mut self.control)))),
            PONG => {
                self.control = Vec::new();
                Ok(Some(Incoming::Pong))
            }
            CLOSE => close_code(&mem::take(&mut self.control)).map(Incoming::Close).map(Some),
            _ if !frame.is_final => self.check_begun().map(|()| None),
            _ => match self.message.take() {
                Some(Message { is_text: true, bytes, .. }) => {
                    String::from_utf8(bytes).map(Incoming::Text).map(Some).map_err(|_| InvalidFrame::NotUtf8)
                }
                Some(Message { bytes, .. }) => Ok(Some(Incoming::Binary(bytes))),
                None => Ok(None),
            },
        }
    }
}

/// Length of a header whose second byte is known.
fn header_bytes(second: u8) -> usize {
    match second & 0x7F {
        126 => 2 + 2 + 4,
        127 => 2 + 8 + 4,
        _ => 2 + 4,
    }
}

/// Cuts up to `wanted` bytes off the front; `None` if there are none.
fn take<'a>(input: &mut &'a mut [u8], wanted: usize) -> Option<&'a mut [u8]> {
    let all = mem::take(input);
    let (taken, rest) = all.split_at_mut(wanted.min(all.len()));
    *input = rest;
    (!taken.is_empty()).then_some(taken)
}

/// Codes that a client may send (RFC 6455 §7.4).
fn close_code(payload: &[u8]) -> Result<Option<u16>, InvalidFrame> {
    match payload {
        [] => Ok(None),
        [high, low, reason @ ..] => {
            let code = u16::from_be_bytes([*high, *low]);
            let allowed = matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999);
            if allowed && std::str::from_utf8(reason).is_ok() {
                Ok(Some(code))
            } else {
                Err(InvalidFrame::CloseFrame)
            }
        }
        [_] => Err(InvalidFrame::CloseFrame),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A masked frame, as a client writes it.
    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![first];
        match payload.len() {
            length @ 0..=125 => bytes.push(0x80 | length as u8),
            length @ 126..=65_535 => {
                bytes.push(0x80 | 126);
                bytes.extend((length as u16).to_be_bytes());
            }
            length => {
                bytes.push(0x80 | 127);
                bytes.extend((length as u64).to_be_bytes());
            }
        }
        let mask = [1, 2, 250, 4];
        bytes.extend(mask);
        bytes.extend(payload.iter().enumerate().map(|(index, byte)| byte ^ mask[index % 4]));
        bytes
    }

    /// Everything that comes out of bytes that arrive in pieces of the given sizes.
    fn parse(mut bytes: Vec<u8>, sizes: &[usize]) -> Result<Vec<Incoming>, InvalidFrame> {
        let mut inbox = Inbox::default();
        let mut incoming = Vec::new();
        let mut rest = bytes.as_mut_slice();
        let mut sizes = sizes.iter().cycle();
        while !rest.is_empty() {
            let size = (*sizes.next().unwrap()).min(rest.len());
            let (mut piece, later) = rest.split_at_mut(size);
            while let Some(message) = inbox.next(&mut piece)? {
                incoming.push(message);
            }
            assert!(piece.is_empty(), "everything is taken");
            rest = later;
        }
        Ok(incoming)
    }

    #[test]
    fn refuses_what_rfc_6455_forbids() {
        let cases = [
            (frame(0xC1, b"x"), InvalidFrame::ReservedBits),
            (frame(0x83, b"x"), InvalidFrame::Opcode(3)),
            (frame(0x8B, b"x"), InvalidFrame::Opcode(0xB)),
            (vec![0x81, 0x01, b'x'], InvalidFrame::Unmasked),
            (frame(0x09, b"x"), InvalidFrame::ControlFrame),
            (frame(0x89, &[0; 126]), InvalidFrame::ControlFrame),
            (frame(0x80, b"x"), InvalidFrame::UnexpectedContinuation),
            ([frame(0x01, b"x"), frame(0x81, b"y")].concat(), InvalidFrame::ExpectedContinuation),
            (frame(0x81, &[b'x'; MAX_CLIENT_FRAME_BYTES + 1]), InvalidFrame::TooBig),
            (
                [frame(0x01, &[b'x'; MAX_CLIENT_FRAME_BYTES]), frame(0x80, b"y")].concat(),
                InvalidFrame::TooBig,
            ),
            (frame(0x82, &[0; MAX_CLIENT_FRAME_BYTES + 1]), InvalidFrame::TooBig),
            (
                vec![0x81, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 0, 0],
                InvalidFrame::TooBig,
            ),
            (frame(0x81, &[0xFF, 0xFE]), InvalidFrame::NotUtf8),
            (frame(0x88, &[3]), InvalidFrame::CloseFrame),
            (frame(0x88, &1005_u16.to_be_bytes()), InvalidFrame::CloseFrame),
            (frame(0x88, &[3, 232, 0xFF]), InvalidFrame::CloseFrame),
        ];
        for (bytes, error) in cases {
            assert_eq!(parse(bytes.clone(), &[usize::MAX]), Err(error.clone()));
            assert_eq!(parse(bytes, &[1]), Err(error), "byte by byte");
        }
    }

    #[test]
    fn a_control_frame_may_stand_inside_a_message() {
        let bytes = [
            frame(0x01, &[b'a'; MAX_CLIENT_FRAME_BYTES - 1]),
            frame(0x89, &[7; 125]),
            frame(0x80, b"b"),
            frame(0x88, &[]),
        ]
        .concat();
        let text = format!("{}b", "a".repeat(MAX_CLIENT_FRAME_BYTES - 1));
        let expected = [Incoming::Ping(vec![7; 125]), Incoming::Text(text), Incoming::Close(None)];
        assert_eq!(parse(bytes, &[1000]).unwrap(), expected);
    }

    /// The shortest bytes that nothing after them makes UTF-8: a lone continuation, an overlong form, a surrogate, beyond
    /// U+10FFFF, a cut character.
    const BROKEN: [&[u8]; 6] =
        [&[0x80], &[0xC0], &[0xE0, 0x80], &[0xED, 0xA0], &[0xF4, 0x90], &[0xF0, 0x9F, b'a']];

    fn message() -> impl Strategy<Value = (Vec<u8>, Incoming)> {
        prop_oneof![
            (".{0,200}", 0_usize..4).prop_map(|(text, fragments)| {
                let mut bytes = Vec::new();
                let raw = text.as_bytes();
                for index in 0..=fragments {
                    let at = |index| raw.len() * index / (fragments + 1);
                    let opcode = if index == 0 { TEXT } else { CONTINUATION };
                    let fin = if index == fragments { 0x80 } else { 0 };
                    bytes.extend(frame(fin | opcode, &raw[at(index)..at(index + 1)]));
                }
                (bytes, Incoming::Text(text))
            }),
            proptest::collection::vec(any::<u8>(), 0..300)
                .prop_map(|data| (frame(0x82, &data), Incoming::Binary(data))),
            proptest::collection::vec(any::<u8>(), 0..126)
                .prop_map(|data| (frame(0x89, &data), Incoming::Ping(data))),
            Just((frame(0x8A, b"pong"), Incoming::Pong)),
            Just((frame(0x88, &[3, 232, b'o', b'k']), Incoming::Close(Some(1000)))),
        ]
    }

    proptest! {
        #[test]
        fn messages_survive_any_cutting(
            messages in proptest::collection::vec(message(), 0..8),
            sizes in proptest::collection::vec(1_usize..64, 1..8),
        ) {
            let bytes = messages.iter().flat_map(|(bytes, _)| bytes.clone()).collect();
            let expected: Vec<_> = messages.into_iter().map(|(_, message)| message).collect();
            prop_assert_eq!(parse(bytes, &sizes), Ok(expected));
        }

        #[test]
        fn a_text_that_is_not_utf_8_is_refused_at_its_first_wrong_byte(
            good in ".{0,100}",
            broken in proptest::sample::select(&BROKEN[..]),
            rest in 1_usize..50,
            size in 1_usize..50,
        ) {
            let begun = [good.as_bytes(), broken].concat();
            let mut whole = frame(0x81, &[&begun[..], &vec![b'x'; rest]].concat());
            whole.truncate(whole.len() - rest);
            let fragment = frame(0x01, &begun);
            for up_to_there in [whole, fragment] {
                prop_assert_eq!(parse(up_to_there.clone(), &[size]), Err(InvalidFrame::NotUtf8));
                let before = up_to_there[..up_to_there.len() - 1].to_vec();
                prop_assert_eq!(parse(before, &[size]), Ok(vec![]));
            }
        }

        #[test]
        fn garbage_never_panics(
            bytes in proptest::collection::vec(any::<u8>(), 0..400),
            size in 1_usize..50,
        ) {
            let _ = parse(bytes, &[size]);
        }
    }
}
