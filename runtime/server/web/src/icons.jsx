// Line icons of 20 units, drawn for this page; they say nothing to a screen reader.

const PATHS = {
  plus: "M10 4v12M4 10h12",
  menu: "M3 6h14M3 10h14M3 14h14",
  close: "M5 5l10 10M15 5 5 15",
  send: "M10 16V4M5 9l5-5 5 5",
  stop: "M6 6h8v8H6z",
  clip: "m14.500 9-5 5a2.800 2.800 0 0 1-4-4l5.500-5.500a2 2 0 0 1 2.800 2.800L8.500 12.600",
  sliders: "M3 6h7M14 6h3M3 14h3M10 14h7M12 4v4M8 12v4",
  edit: "M4 16l.7-3.200L13 4.500l2.500 2.500-8.300 8.300L4 16zM11.500 6l2.500 2.500",
  again: "M15.500 8a6 6 0 1 0 .3 3.600M16 4v4h-4",
  copy: "M7.500 7.500h8v8h-8zM12.500 7.500v-3h-8v8h3",
  check: "m4.500 10.500 3.500 3.500 7.500-8",
  left: "m12 5-5 5 5 5",
  right: "m8 5 5 5-5 5",
  down: "M10 4v12M5 11l5 5 5-5",
  save: "M10 3v9M6.500 9l3.500 3.500L13.500 9M4 16h12",
  open: "M10 12.500V3.500M6.500 7l3.500-3.500L13.500 7M4 16h12",
  trash: "M4 6h12M8 6V4h4v2M6 6l.7 10h6.600L14 6",
  chat: "M4 4.500h12v9H9l-3.500 3v-3H4z",
  text: "M4 5h12M4 9h8M4 13h10M14.500 7.500v3",
  sun: "M10 7a3 3 0 1 0 0 6 3 3 0 0 0 0-6zM10 2v2M10 16v2M2 10h2M16 10h2M4.300 4.300l1.400 1.400M14.300 14.300l1.400 1.400M4.300 15.700l1.400-1.400M14.300 5.700l1.400-1.400",
  moon: "M15.500 12A6.500 6.500 0 0 1 8 4.500a6 6 0 1 0 7.500 7.500z",
  auto: "M3 5h14v9H3zM7 17h6M10 14v3",
};

export const Icon = ({ name }) => (
  <svg class="icon" viewBox="0 0 20 20" aria-hidden="true" focusable="false">
    <path d={PATHS[name]} />
  </svg>
);

/** A button that shows only an icon; `label` is its name and its tooltip. */
export const IconButton = ({ icon, label, ...rest }) => (
  <button type="button" class="icon-button" aria-label={label} title={label} {...rest}>
    <Icon name={icon} />
  </button>
);
