//! WebSocket frames of a server (RFC 6455 §5.2): never masked, never fragmented.

use bytes::Bytes;
use tickmesh_protocol::{
    Event,
    client::{CloseCode, ControlMessage, Mark, write_data_message, write_marked_message},
};

const FIN: u8 = 0x80;
const TEXT: u8 = 0x1;
const BINARY: u8 = 0x2;
const CLOSE: u8 = 0x8;
const PONG: u8 = 0xA;

/// Longest payload of a control frame, in bytes (RFC 6455 §5.5).
pub const MAX_CONTROL_PAYLOAD_BYTES: usize = 125;

/// Longest header of an unmasked frame, in bytes.
const MAX_HEADER_BYTES: usize = 10;

/// Room for the JSON around `data`: the field names, two sequences and a usual stream name.
const USUAL_HEAD_BYTES: usize = 128;

/// A ping without payload.
pub const PING: Bytes = Bytes::from_static(&[FIN | 0x9, 0]);

/// The frame of one event; made once and shared by everyone who gets it.
pub fn data(event: &Event) -> Bytes {
    let mut frame = Vec::with_capacity(MAX_HEADER_BYTES + USUAL_HEAD_BYTES + event.bytes());
    frame.extend_from_slice(&[0; MAX_HEADER_BYTES]);
    write_data_message(&mut frame, event);
    with_header(TEXT, frame)
}

/// A frame of [`data`], with a mark.
pub fn marked(data: &Bytes, mark: Mark) -> Bytes {
    let header_bytes = match data.get(1) {
        Some(126) => 4,
        Some(127) => 10,
        _ => 2,
    };
    let message = data.get(header_bytes..).unwrap_or_default();
    let mut frame = Vec::with_capacity(MAX_HEADER_BYTES + USUAL_HEAD_BYTES + message.len());
    frame.extend_from_slice(&[0; MAX_HEADER_BYTES]);
    write_marked_message(&mut frame, message, mark);
    with_header(TEXT, frame)
}

/// A frame, and the reset before it if there is one: queued both, or none.
pub fn after_reset(reset: Option<&Bytes>, frame: &Bytes) -> Bytes {
    reset.map_or_else(|| frame.clone(), |reset| [&reset[..], frame].concat().into())
}

/// The frame of everything an edge says that is not data.
pub fn control(message: &ControlMessage) -> Bytes {
    text(&message.to_json())
}

pub fn text(text: &str) -> Bytes {
    whole(TEXT, text.as_bytes())
}

pub fn binary(payload: &[u8]) -> Bytes {
    whole(BINARY, payload)
}

/// Answers a ping. `payload` is the ping's, at most [`MAX_CONTROL_PAYLOAD_BYTES`].
pub fn pong(payload: &[u8]) -> Bytes {
    short(PONG, payload)
}

/// Says why a connection ends. A reason that is too long is cut.
pub fn close(code: CloseCode, reason: &str) -> Bytes {
    let mut end = reason.len().min(MAX_CONTROL_PAYLOAD_BYTES - 2);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    let mut payload = code.code().to_be_bytes().to_vec();
    payload.extend_from_slice(&reason.as_bytes()[..end]);
    short(CLOSE, &payload)
}

/// Answers a client's Close with its own code, or with none if it gave none.
pub fn close_echo(code: Option<u16>) -> Bytes {
    match code {
        Some(code) => short(CLOSE, &code.to_be_bytes()),
        None => short(CLOSE, &[]),
    }
}

fn short(opcode: u8, payload: &[u8]) -> Bytes {
    let payload = &payload[..payload.len().min(MAX_CONTROL_PAYLOAD_BYTES)];
    let mut frame = Vec::with_capacity(2 + payload.len());
    // At most 125, so it fits.
    frame.extend_from_slice(&[FIN | opcode, payload.len() as u8]);
    frame.extend_from_slice(payload);
    frame.into()
}

fn whole(opcode: u8, payload: &[u8]) -> Bytes {
    let mut frame = Vec::with_capacity(MAX_HEADER_BYTES + payload.len());
    frame.extend_from_slice(&[0; MAX_HEADER_BYTES]);
    frame.extend_from_slice(payload);
    with_header(opcode, frame)
}

/// Puts the header of a frame directly before the payload, which begins at [`MAX_HEADER_BYTES`].
fn with_header(opcode: u8, mut frame: Vec<u8>) -> Bytes {
    let length = frame.len() - MAX_HEADER_BYTES;
    let mut header = [FIN | opcode, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let header_bytes = match (u8::try_from(length), u16::try_from(length)) {
        (Ok(short @ 0..=125), _) => {
            header[1] = short;
            2
        }
        (_, Ok(medium)) => {
            header[1] = 126;
            header[2..4].copy_from_slice(&medium.to_be_bytes());
            4
        }
        _ => {
            header[1] = 127;
            header[2..10].copy_from_slice(&(length as u64).to_be_bytes());
            10
        }
    };
    let start = MAX_HEADER_BYTES - header_bytes;
    frame[start..MAX_HEADER_BYTES].copy_from_slice(&header[..header_bytes]);
    Bytes::from(frame).slice(start..)
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use tokio_tungstenite::tungstenite::{Message, WebSocket, protocol::Role};

    use super::*;

    /// What a client that was not written here reads.
    fn read(frame: &Bytes) -> Message {
        let mut client = WebSocket::from_raw_socket(Cursor::new(frame.to_vec()), Role::Client, None);
        client.read().expect("a valid frame")
    }

    #[test]
    fn messages_of_every_length_form_are_read_by_another_implementation() {
        for length in [0, 1, 100, 125, 126, 127, 65_000, 65_535, 65_536, 100_000] {
            let message = ControlMessage::Error {
                id: None,
                code: tickmesh_protocol::client::ErrorCode::Internal,
                message: "x".repeat(length),
            };
            assert_eq!(read(&control(&message)), Message::Text(message.to_json().into()));
            let payload = vec![0xFF; length];
            assert_eq!(read(&binary(&payload)), Message::Binary(payload.into()));
        }
    }

    #[test]
    fn a_mark_is_added_to_frames_of_every_length_form() {
        use tickmesh_protocol::{Epoch, Previous, Sequence};
        for length in [1, 30, 60, 70, 65_470, 70_000] {
            let (sequence, previous) = (Sequence::ZERO, Previous::Unknown { read_from: Sequence::ZERO });
            let (stream, epoch) = ("depth.a".parse().unwrap(), Epoch::from_u64(1));
            let data = "1".repeat(length).into();
            let event = Event { stream, epoch, sequence, previous, engine_time_us: 0, data, signature: None };
            let plain = data_frame_text(&super::data(&event));
            let marked = data_frame_text(&marked(&super::data(&event), Mark::Snapshot));
            assert_eq!(marked, plain.replacen(r#","data""#, r#","snapshot":true,"data""#, 1));
        }
    }

    fn data_frame_text(frame: &Bytes) -> String {
        read(frame).into_text().unwrap().to_string()
    }

    #[test]
    fn close_carries_code_and_reason_and_cuts_what_is_too_long() {
        let Message::Close(Some(frame)) = read(&close(CloseCode::SlowClient, &"é".repeat(100))) else {
            panic!("no close frame");
        };
        assert_eq!((u16::from(frame.code), frame.reason.as_str()), (4408, "é".repeat(61).as_str()));
        assert_eq!(read(&pong(b"abc")), Message::Pong(b"abc".to_vec().into()));
        assert_eq!(read(&PING), Message::Ping(Bytes::new()));
        assert_eq!(read(&close_echo(None)), Message::Close(None));
    }
}
