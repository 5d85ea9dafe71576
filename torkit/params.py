"""Every consensus parameter that torkit heeds: its default, its least and its greatest value. param-spec.

Pure. A consensus keeps its parameters as written. Code asks for a value by name, here or by a `Param`.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

INT32_MAX = 2**31 - 1

_TLS_RECORD_CELLS = 31
_OUTBUF_CELLS = 2 * _TLS_RECORD_CELLS


class Parameter(NamedTuple):
    """The default, for a consensus without this parameter; the least and the greatest value."""

    default: int
    low: int
    high: int


# `param(name)` is the value in force.
Param = Callable[[str], int]

PARAMETERS: Mapping[str, Parameter] = {
    # Congestion and flow control: proposal 324, section 6.5, [CONSENSUS_PARAMETERS]; defaults as in C tor
    # 0.4.9. In cells, but for `*_pct`, per cent. The parameters of the algorithms and estimators that nobody
    # uses (Westwood, NOLA, cc_bwe_min, cc_bdp_alg) are left out.
    "circwindow": Parameter(1000, 100, 1000),
    "cc_alg": Parameter(2, 0, 3),
    "cc_sendme_inc": Parameter(_TLS_RECORD_CELLS, 1, 254),
    "cc_cwnd_init": Parameter(4 * _TLS_RECORD_CELLS, _TLS_RECORD_CELLS, 10_000),
    "cc_cwnd_min": Parameter(4 * _TLS_RECORD_CELLS, _TLS_RECORD_CELLS, 1_000),
    "cc_cwnd_max": Parameter(INT32_MAX, 500, INT32_MAX),
    "cc_cwnd_inc": Parameter(1, 1, 1_000),
    "cc_cwnd_inc_pct_ss": Parameter(100, 1, 500),
    "cc_cwnd_inc_rate": Parameter(_TLS_RECORD_CELLS, 1, 250),
    "cc_ewma_cwnd_pct": Parameter(50, 1, 255),
    "cc_ewma_max": Parameter(10, 2, INT32_MAX),
    "cc_ewma_ss": Parameter(2, 2, INT32_MAX),
    "cc_rtt_reset_pct": Parameter(100, 0, 100),
    "cc_ss_max": Parameter(5_000, 500, INT32_MAX),
    "cc_cwnd_full_gap": Parameter(4, 0, 2**15 - 1),
    "cc_cwnd_full_minpct": Parameter(25, 0, 100),
    "cc_cwnd_full_per_cwnd": Parameter(1, 0, 1),
    "cc_vegas_alpha_exit": Parameter(3 * _OUTBUF_CELLS, 0, 1_000),
    "cc_vegas_beta_exit": Parameter(4 * _OUTBUF_CELLS, 0, 1_000),
    "cc_vegas_gamma_exit": Parameter(3 * _OUTBUF_CELLS, 0, 1_000),
    "cc_vegas_delta_exit": Parameter(5 * _OUTBUF_CELLS, 0, INT32_MAX),
    "cc_sscap_exit": Parameter(600, 100, INT32_MAX),
    "cc_vegas_alpha_onion": Parameter(3 * _OUTBUF_CELLS, 0, 1_000),
    "cc_vegas_beta_onion": Parameter(6 * _OUTBUF_CELLS, 0, 1_000),
    "cc_vegas_gamma_onion": Parameter(4 * _OUTBUF_CELLS, 0, 1_000),
    "cc_vegas_delta_onion": Parameter(7 * _OUTBUF_CELLS, 0, INT32_MAX),
    "cc_sscap_onion": Parameter(475, 100, INT32_MAX),
    "cc_xoff_client": Parameter(500, 1, 10_000),
    "cc_xoff_exit": Parameter(500, 1, 10_000),
    "cc_xon_rate": Parameter(500, 1, 5_000),
    "cc_xon_change_pct": Parameter(25, 1, 99),
    "cc_xon_ewma_cnt": Parameter(2, 2, 100),
    # Linked circuits: C tor 0.4.9. A switch; per 10,000 exits; numbers of sets, of launches, of legs; bytes.
    "cfx_enabled": Parameter(1, 0, 1),
    "cfx_low_exit_threshold": Parameter(6000, 0, 10_000),
    "cfx_max_linked_set": Parameter(10, 0, 255),
    "cfx_max_prebuilt_set": Parameter(3, 0, 255),
    "cfx_max_unlinked_leg_retry": Parameter(3, 0, 255),
    "cfx_max_oooq_bytes": Parameter(INT32_MAX, 0, INT32_MAX),
    # Link padding: padding-spec, "Consensus parameters governing behavior"; ranges as in C tor 0.4.9. In ms,
    # but for the last two: a switch, and seconds.
    "nf_ito_low": Parameter(1500, 0, 60_000),
    "nf_ito_high": Parameter(9500, 0, 60_000),
    "nf_ito_low_reduced": Parameter(9000, 0, 60_000),
    "nf_ito_high_reduced": Parameter(14_000, 0, 60_000),
    "nf_pad_before_usage": Parameter(1, 0, 1),
    "nf_conntimeout_clients": Parameter(1800, 60, 86400),
    # Padding of circuits that are set up for onion services: padding-spec, "Circuit padding". Two switches.
    "circpad_padding_disabled": Parameter(0, 0, 1),
    "circpad_padding_reduced": Parameter(0, 0, 1),
    # Guards: guard-spec, "Parameters". Days, numbers, per cent, seconds, as the names say.
    "guard-lifetime-days": Parameter(120, 1, 3650),
    "guard-confirmed-min-lifetime-days": Parameter(60, 1, 3650),
    "guard-remove-unlisted-guards-after-days": Parameter(20, 1, 3650),
    "guard-max-sample-size": Parameter(60, 1, INT32_MAX),
    "guard-max-sample-threshold-percent": Parameter(20, 1, 100),
    "guard-min-filtered-sample-size": Parameter(20, 1, INT32_MAX),
    "guard-n-primary-guards": Parameter(3, 1, INT32_MAX),
    "guard-n-primary-guards-to-use": Parameter(1, 1, INT32_MAX),
    "guard-n-primary-dir-guards-to-use": Parameter(3, 1, INT32_MAX),
    "guard-internet-likely-down-interval": Parameter(600, 1, INT32_MAX),
    "guard-nonprimary-guard-connect-timeout": Parameter(15, 1, INT32_MAX),
    "guard-nonprimary-guard-idle-timeout": Parameter(600, 1, INT32_MAX),
    "guard-meaningful-restriction-percent": Parameter(20, 1, 100),
    "guard-extreme-restriction-percent": Parameter(1, 1, 100),
    # Path bias: path-spec, "Detecting route manipulation by guard nodes". Circuits; per cent; a switch.
    "pb_mincircs": Parameter(150, 5, INT32_MAX),
    "pb_noticepct": Parameter(70, 0, 100),
    "pb_warnpct": Parameter(50, 0, 100),
    "pb_extremepct": Parameter(30, 0, 100),
    "pb_dropguards": Parameter(0, 0, 1),
    "pb_scalecircs": Parameter(300, 10, INT32_MAX),
    "pb_multfactor": Parameter(1, 1, INT32_MAX),
    "pb_scalefactor": Parameter(2, 2, INT32_MAX),
    "pb_minuse": Parameter(20, 3, INT32_MAX),
    "pb_noticeusepct": Parameter(80, 0, 100),
    "pb_extremeusepct": Parameter(60, 0, 100),
    "pb_scaleuse": Parameter(100, 10, INT32_MAX),
    # Build times: path-spec, "Parameters governing behavior". Timeouts in ms, but for cbtlearntimeout and
    # cbttestfreq, seconds; numbers of circuits; quantiles in per cent.
    "cbtdisabled": Parameter(0, 0, 1),
    "cbtnummodes": Parameter(10, 1, 20),
    "cbtrecentcount": Parameter(20, 3, 1000),
    "cbtmaxtimeouts": Parameter(18, 3, 10000),
    "cbtmincircs": Parameter(100, 1, 10000),
    "cbtquantile": Parameter(80, 10, 99),
    "cbtclosequantile": Parameter(99, 10, 99),
    "cbttestfreq": Parameter(10, 1, INT32_MAX),
    "cbtmintimeout": Parameter(10, 10, INT32_MAX),
    "cbtinitialtimeout": Parameter(60000, 10, INT32_MAX),
    "cbtlearntimeout": Parameter(180, 10, 60000),
    "cbtmaxopencircs": Parameter(10, 0, 14),
    # Paths and the directory. A scale; per cent; hours; two switches.
    "bwweightscale": Parameter(10000, 1, INT32_MAX),
    "min_paths_for_circs_pct": Parameter(60, 25, 95),
    "try-diff-for-consensus-newer-than": Parameter(72, 0, 8192),
    "use-family-ids": Parameter(1, 0, 1),
    "use-family-lists": Parameter(1, 0, 1),
    # Onion services: rend-spec-v3, vanguards-spec. Minutes; numbers; bytes; vanguards and seconds.
    "hsdir_interval": Parameter(1440, 5, 14400),
    "hsdir_n_replicas": Parameter(2, 1, 16),
    "hsdir_spread_fetch": Parameter(3, 1, 128),
    "hsdir_spread_store": Parameter(4, 1, 128),
    "hs_intro_min_lifetime": Parameter(64800, 0, INT32_MAX),
    "hs_intro_max_lifetime": Parameter(86400, 0, INT32_MAX),
    "hs_intro_min_introduce2": Parameter(16384, 1, INT32_MAX),
    "hs_intro_max_introduce2": Parameter(32768, 1, INT32_MAX),
    "hs_service_max_rdv_failures": Parameter(2, 1, 10),
    "HSV3MaxDescriptorSize": Parameter(50_000, 1, INT32_MAX),
    "guard-hs-l2-number": Parameter(4, 1, 19),
    "guard-hs-l2-lifetime-min": Parameter(86400, 1, INT32_MAX),
    "guard-hs-l2-lifetime-max": Parameter(1036800, 1, INT32_MAX),
    "guard-hs-l3-number": Parameter(8, 1, 19),
    "guard-hs-l3-lifetime-min": Parameter(3600, 1, INT32_MAX),
    "guard-hs-l3-lifetime-max": Parameter(172800, 1, INT32_MAX),
}


def parameter(params: Mapping[str, int], name: str) -> int:
    """Returns the value of one of PARAMETERS, by the parameters of a consensus as written."""
    default, low, high = PARAMETERS[name]
    value = params.get(name, default)
    return low if value < low else high if value > high else value


def default_param(name: str) -> int:
    """Returns the Param where there is no consensus."""
    return PARAMETERS[name].default
