//! CRC-32 (ISO-HDLC, as in zlib) of levels, for [`super::Book::checksum`].

/// Of each byte alone; the polynomial is 0x04c11db7, its bits reflected.
const TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < table.len() {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};

/// The checksum of prices and quantities in their order.
pub(super) fn of<'a>(levels: impl Iterator<Item = (&'a str, &'a str)>) -> u32 {
    let numbers = levels.flat_map(|(price, quantity)| [price, quantity]);
    let digits = numbers
        .flat_map(|number| number.bytes().filter(|byte| *byte != b'.').skip_while(|byte| *byte == b'0'));
    !digits.fold(u32::MAX, |crc, byte| crc >> 8 ^ TABLE[usize::from(crc as u8 ^ byte)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_crc_of_zlib() {
        // The check value of the catalogue of CRCs.
        assert_eq!(of([("123456789", "")].into_iter()), 0xcbf4_3926);
        assert_eq!(of([].into_iter()), 0);
        assert_eq!(of([("0.0", "00")].into_iter()), 0, "nothing but zeros");
    }

    /// The worked example of Kraken's guide for version 2.
    #[test]
    fn it_is_what_kraken_documents() {
        let asks = [
            ("45285.2", "0.00100000"),
            ("45286.4", "1.54571953"),
            ("45286.6", "1.54571109"),
            ("45289.6", "1.54560911"),
            ("45290.2", "0.15890660"),
            ("45291.8", "1.54553491"),
            ("45294.7", "0.04454749"),
            ("45296.1", "0.35380000"),
            ("45297.5", "0.09945542"),
            ("45299.5", "0.18772827"),
        ];
        let bids = [
            ("45283.5", "0.10000000"),
            ("45283.4", "1.54582015"),
            ("45282.1", "0.10000000"),
            ("45281.0", "0.10000000"),
            ("45280.3", "1.54592586"),
            ("45279.0", "0.07990000"),
            ("45277.6", "0.03310103"),
            ("45277.5", "0.30000000"),
            ("45277.3", "1.54602737"),
            ("45276.6", "0.15445238"),
        ];
        assert_eq!(of(asks.into_iter().chain(bids)), 3_310_070_434);
    }
}
