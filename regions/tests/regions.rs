//! The region map against what others measured.

#![allow(clippy::unwrap_used, reason = "clippy knows only the #[test] functions as tests, not their helpers")]

use tickmesh_regions::{
    InvalidRegions, MAX_REGION_NAME_BYTES, Place, RegionName, builtin, estimated_rtt_ms, find, nearest, parse,
};

fn place(latitude: f64, longitude: f64) -> Place {
    Place::new(latitude, longitude).unwrap()
}

/// Average round trips between the data centres of one provider, in milliseconds: IBM Cloud documentation, "Network
/// latency" of VPC, 27 July to 25 August 2024.
const MEASURED: &[(&str, &str, f64)] = &[
    ("eu-central", "eu-west-2", 13.0),
    ("us-central", "us-east", 31.0),
    ("us-east", "eu-west-2", 75.0),
    ("us-east", "eu-central", 91.0),
    ("us-central", "eu-west-2", 113.0),
    ("ap-northeast", "ap-southeast-2", 115.0),
    ("us-east", "sa-east", 118.0),
    ("us-central", "ap-northeast", 143.0),
    ("us-east", "ap-northeast", 166.0),
    ("us-central", "ap-southeast-2", 186.0),
    ("eu-central", "sa-east", 198.0),
    ("eu-west-2", "ap-northeast", 244.0),
    ("eu-west-2", "ap-southeast-2", 261.0),
];

#[test]
fn estimates_are_near_what_was_measured() {
    for &(a, b, measured) in MEASURED {
        let estimated = estimated_rtt_ms(find(a).unwrap().place, find(b).unwrap().place);
        let ratio = estimated / measured;
        assert!(
            (0.5..=1.5).contains(&ratio),
            "{a} to {b}: estimated {estimated:.0} ms, measured {measured:.0} ms"
        );
    }
}

#[test]
fn distances_are_right() {
    let (london, tokyo) = (place(51.51, -0.13), place(35.68, 139.69));
    assert!((london.distance_km(tokyo) - 9560.0).abs() < 30.0, "{}", london.distance_km(tokyo));
    assert_eq!(london.distance_km(london), 0.0);
    assert_eq!(london.distance_km(tokyo), tokyo.distance_km(london));
    let antipodes = place(0.0, 0.0).distance_km(place(0.0, 180.0));
    assert!((antipodes - 20_015.0).abs() < 1.0, "{antipodes}");
    // Across the line where the days change: 2 degrees, not 358.
    assert!(place(0.0, 179.0).distance_km(place(0.0, -179.0)) < 223.0);
}

#[test]
fn the_builtin_regions_are_read() {
    assert_eq!(parse(include_str!("../regions.toml")).unwrap(), builtin());
    assert_eq!(builtin().len(), 19);
    for region in builtin() {
        assert!(!region.title.is_empty(), "{}", region.name);
        assert_eq!(nearest(builtin(), region.place), Some(region), "two regions at one place");
    }
    assert_eq!(find("eu-west").unwrap().title, "Ireland");
    assert_eq!(find("nowhere"), None);
}

#[test]
fn the_nearest_region_is_found() {
    for (latitude, longitude, title) in [
        (40.71, -74.01, "Northern Virginia"), // New York
        (47.38, 8.54, "Frankfurt"),           // Zurich
        (34.69, 135.50, "Tokyo"),             // Osaka
        (-36.85, 174.76, "Sydney"),           // Auckland
        (21.31, -157.86, "California"),       // Honolulu
    ] {
        assert_eq!(nearest(builtin(), place(latitude, longitude)).unwrap().title, title);
    }
    assert_eq!(nearest(&[], place(0.0, 0.0)), None);
}

#[test]
fn names_and_places_are_checked() {
    let longest = "r".repeat(MAX_REGION_NAME_BYTES);
    for good in ["eu-west", "a", "1-2", &longest] {
        assert_eq!(good.parse::<RegionName>().unwrap().as_str(), good);
    }
    for bad in ["", "EU", "eu_west", "eu.west", "eu west", "é", &format!("{longest}r")] {
        assert!(bad.parse::<RegionName>().is_err(), "{bad:?}");
    }
    for (latitude, longitude) in [(90.1, 0.0), (0.0, -180.1), (f64::NAN, 0.0), (0.0, f64::INFINITY)] {
        assert!(Place::new(latitude, longitude).is_err(), "{latitude} {longitude}");
    }
}

#[test]
fn faults_in_a_list_are_named() {
    let entry = |name: &str, latitude: &str| {
        format!("[[region]]\nname = \"{name}\"\ntitle = \"T\"\nlatitude = {latitude}\nlongitude = 1.5\n")
    };
    assert_eq!(parse(&entry("a", "1.5")).unwrap().len(), 1);
    let twice = parse(&(entry("a", "1.5") + &entry("a", "2.5"))).unwrap_err();
    assert!(matches!(&twice, InvalidRegions::Twice(name) if name.as_str() == "a"), "{twice}");
    let nowhere = parse(&entry("a", "95.0")).unwrap_err();
    assert_eq!(
        nowhere.to_string(),
        "region a: latitude 95 must be within -90 and 90 degrees, longitude 1.5 within -180 and 180"
    );
    for text in
        ["", "region = 1", &entry("A", "1.5"), &entry("a", "\"x\""), &(entry("a", "1.5") + "more = 1\n")]
    {
        assert!(matches!(parse(text), Err(InvalidRegions::Format(_))), "{text}");
    }
}
