//! Regions of a tickmesh network: their names, where they are, and about how long a message takes between them.
//!
//! ```
//! use tickmesh_regions::{Place, builtin, estimated_rtt_ms, find, nearest};
//!
//! let (ireland, tokyo) = (find("eu-west").unwrap(), find("ap-northeast").unwrap());
//! assert!(estimated_rtt_ms(ireland.place, tokyo.place) > 100.0);
//! let lisbon = Place::new(38.72, -9.14).unwrap();
//! assert_eq!(nearest(builtin(), lisbon).unwrap().title, "Paris");
//! ```

use std::{fmt, str::FromStr, sync::LazyLock};

use serde::Deserialize;

/// Longest name of a region, in bytes: it is part of every topic.
pub const MAX_REGION_NAME_BYTES: usize = 32;

/// Light in glass travels at about two thirds of its speed in vacuum.
const FIBRE_KM_PER_MS: f64 = 200.0;

/// Cables are longer than the great circle: they follow coasts, roads and other cables.
const PATH_FACTOR: f64 = 1.4;

/// Routers, and the way to and from the long line, there and back.
const FIXED_MS: f64 = 2.0;

/// Mean radius of the earth (IUGG), in kilometres.
const EARTH_RADIUS_KM: f64 = 6371.0;

static BUILTIN: LazyLock<Vec<Region>> = LazyLock::new(|| {
    // The file is part of the program, and a test reads it: it cannot be invalid here.
    parse(include_str!("../regions.toml")).unwrap_or_default()
});

/// The name of a region: lower case letters, digits and `-`, at most [`MAX_REGION_NAME_BYTES`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(try_from = "String")]
pub struct RegionName(Box<str>);

/// A text that is no name of a region.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a region's name has 1 to {MAX_REGION_NAME_BYTES} of a-z, 0-9 and -, as in eu-west")]
pub struct InvalidRegionName;

/// A place on the earth. Valid by construction.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Place {
    latitude: f64,
    longitude: f64,
}

/// Numbers that are no place.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[error("latitude {latitude} must be within -90 and 90 degrees, longitude {longitude} within -180 and 180")]
pub struct InvalidPlace {
    pub latitude: f64,
    pub longitude: f64,
}

/// A region and where it is.
#[derive(Clone, Debug, PartialEq)]
pub struct Region {
    pub name: RegionName,
    /// For people: the city or country.
    pub title: String,
    pub place: Place,
}

/// Why a text is no list of regions.
#[derive(Debug, thiserror::Error)]
pub enum InvalidRegions {
    #[error("not a list of [[region]] tables with name, title, latitude and longitude: {0}")]
    Format(#[from] toml::de::Error),
    #[error("region {name}: {source}")]
    Place { name: RegionName, source: InvalidPlace },
    #[error("region {0} is listed twice")]
    Twice(RegionName),
}

/// The regions that come with tickmesh.
pub fn builtin() -> &'static [Region] {
    &BUILTIN
}

/// The built-in region of a name.
pub fn find(name: &str) -> Option<&'static Region> {
    builtin().iter().find(|region| region.name.as_str() == name)
}

/// Reads a list of regions: TOML, one `[[region]]` each.
///
/// # Errors
/// The first fault found, with the region it is in.
pub fn parse(text: &str) -> Result<Vec<Region>, InvalidRegions> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct File {
        region: Vec<Entry>,
    }
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Entry {
        name: RegionName,
        title: String,
        latitude: f64,
        longitude: f64,
    }
    let file: File = toml::from_str(text)?;
    let mut regions: Vec<Region> = Vec::with_capacity(file.region.len());
    for Entry { name, title, latitude, longitude } in file.region {
        if regions.iter().any(|region| region.name == name) {
            return Err(InvalidRegions::Twice(name));
        }
        match Place::new(latitude, longitude) {
            Ok(place) => regions.push(Region { name, title, place }),
            Err(source) => return Err(InvalidRegions::Place { name, source }),
        }
    }
    Ok(regions)
}

/// About how long a message takes there and back, in milliseconds, on a good line: the great circle at the speed of
/// light in fibre, a factor for the way cables take, and a fixed part. Where a region is reached only the long way
/// around (Europe to Japan by America or Suez) the truth is up to twice as much.
pub fn estimated_rtt_ms(a: Place, b: Place) -> f64 {
    FIXED_MS + 2.0 * a.distance_km(b) * PATH_FACTOR / FIBRE_KM_PER_MS
}

/// The region nearest to a place, by the great circle; `None` of no regions.
pub fn nearest(regions: &[Region], place: Place) -> Option<&Region> {
    regions.iter().min_by(|a, b| place.distance_km(a.place).total_cmp(&place.distance_km(b.place)))
}

impl RegionName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for RegionName {
    type Err = InvalidRegionName;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let valid = (1..=MAX_REGION_NAME_BYTES).contains(&name.len())
            && name.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'));
        if valid { Ok(Self(name.into())) } else { Err(InvalidRegionName) }
    }
}

impl TryFrom<String> for RegionName {
    type Error = InvalidRegionName;

    fn try_from(name: String) -> Result<Self, Self::Error> {
        name.parse()
    }
}

impl fmt::Display for RegionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Place {
    /// Degrees, north and east positive.
    pub fn new(latitude: f64, longitude: f64) -> Result<Self, InvalidPlace> {
        // A NaN is in no range.
        if (-90.0..=90.0).contains(&latitude) && (-180.0..=180.0).contains(&longitude) {
            Ok(Self { latitude, longitude })
        } else {
            Err(InvalidPlace { latitude, longitude })
        }
    }

    pub fn latitude(self) -> f64 {
        self.latitude
    }

    pub fn longitude(self) -> f64 {
        self.longitude
    }

    /// Along the great circle, in kilometres (haversine formula).
    pub fn distance_km(self, other: Self) -> f64 {
        let (from, to) = (self.latitude.to_radians(), other.latitude.to_radians());
        let half_latitude = (to - from) / 2.0;
        let half_longitude = (other.longitude - self.longitude).to_radians() / 2.0;
        let haversine = half_latitude.sin().powi(2) + from.cos() * to.cos() * half_longitude.sin().powi(2);
        // Rounding may bring antipodes just above one.
        2.0 * EARTH_RADIUS_KM * haversine.min(1.0).sqrt().asin()
    }
}
