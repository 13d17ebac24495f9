"""How much carbon a kilowatt-hour of electricity stands for, by country."""

SOURCE = "mean of the grid in 2023, by codecarbon 3.3.2's table"
"""Where a country's figure comes from, in words for a person."""

_TABLE = """
    ARG 354.103, AUS 548.692, AUT 110.812, BEL 138.107, BGD 691.411, BGR 335.334, BIH 600,
    BOL 531.687, BRA 98.348, CAN 170.043, CHE 34.843, CHL 291.113, CHN 582.317, COL 259.511,
    CRI 53.378, CYP 534.323, CZE 449.724, DEU 380.95, DNK 151.65, ECU 150.224, EGY 570.306,
    ESP 174.05, EST 416.667, FIN 79.158, FRA 56.039, GBR 237.589, GEO 167.594, GRC 336.574,
    HRV 204.962, HUN 204.19, IND 713.441, IRL 290.805, IRN 655.125, ITA 330.718, JPN 485.392,
    KAZ 821.391, KEN 70.492, KOR 430.567, KWT 649.163, LTU 160.072, LUX 105.263, LVA 123.2,
    MAR 630.014, MDA 643.464, MEX 507.245, MKD 565.345, MLT 459.144, MMR 398.898, MNE 417.073,
    MNG 775.309, NGA 523.247, NLD 267.622, NOR 30.08, NZL 112.758, OMN 564.635, PAK 440.608,
    PER 266.478, PHL 610.688, POL 661.926, PRT 165.553, PRY 23.755, QAT 602.5, ROU 240.583,
    RUS 441.039, SGP 470.783, SLV 271.468, SRB 636.062, SVK 116.774, SVN 231.275, SWE 40.695,
    THA 549.583, TUN 563.956, TUR 464.586, TWN 642.378, URY 128.788, USA 369.473, VNM 475.449,
    ZAF 707.686
"""
"""ISO 3166-1 alpha-3 codes with grams of CO2 equivalent for each kilowatt-hour generated.

Source: ``carbon_intensity`` of all countries with ``year`` 2023 in the file
``codecarbon/data/private_infra/global_energy_mix.json`` of codecarbon 3.3.2 (SHA-256
8f1053800210aa07cc6019cc422b0d34f47dd092f6351dd873445c2b8199a107), which is
under the MIT License, Copyright (c) 2019 Mila, BCG Gamma, CometML, Haverford College, and (c) 2023
Code Carbon NGO.
"""

GRAMS_PER_KWH = {
    country: float(grams) for country, grams in (entry.split() for entry in _TABLE.split(","))
}
"""Grams of CO2 equivalent for each kilowatt-hour, by the ISO 3166-1 alpha-3 code of a country."""
